//! Scenes for the plan.

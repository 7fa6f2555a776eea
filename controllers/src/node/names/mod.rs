//! Name resolution: what each network's tasks may ask for, and the answers.

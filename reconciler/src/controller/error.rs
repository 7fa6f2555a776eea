//! What a reconcile answers when it did not go well.

use std::fmt;
use std::time::Duration;

use crate::objects;

/// What the framework does about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Runs again, later each time.
    Retry,
    /// Nothing is wrong: somebody else was faster. Runs again with what is true by then.
    Conflict,
    /// Runs again after this.
    After(Duration),
    /// Will fail again until something changes: not repeated by itself.
    Terminal,
    /// Somebody else leads: everything stops.
    Fenced,
}

/// An error with its class. Anything that is an error becomes one by `?`: what the objects layer answered keeps its
/// meaning, however deep it lies among the sources; the rest is [`Class::Retry`].
pub struct Error {
    class: Class,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl Error {
    /// Will be tried again, later each time: for what may go away by itself. What `?` makes of most errors.
    pub fn retry(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { class: Class::Retry, source: source.into() }
    }

    /// Will be tried again after `delay`: for whoever was told how long.
    pub fn after(delay: Duration, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { class: Class::After(delay), source: source.into() }
    }

    /// Will not be tried again until something changes: for what the object itself says wrong.
    pub fn terminal(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { class: Class::Terminal, source: source.into() }
    }

    /// What the framework will do about it.
    pub fn class(&self) -> Class {
        self.class
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        Self { class: classify(&error), source: Box::new(error) }
    }
}

fn classify(error: &(dyn std::error::Error + 'static)) -> Class {
    let mut cause = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref::<objects::Error>() {
            Some(
                objects::Error::Conflict { .. }
                | objects::Error::AlreadyExists { .. }
                | objects::Error::NotFound { .. },
            ) => {
                return Class::Conflict;
            }
            Some(objects::Error::Fenced) => return Class::Fenced,
            Some(objects::Error::Invalid { .. } | objects::Error::TooLarge { .. }) => return Class::Terminal,
            Some(_) => return Class::Retry,
            None => cause = error.source(),
        }
    }
    Class::Retry
}

/// The error and all its sources, for a log line.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)?;
        let mut cause = self.source.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.class)
    }
}

//! Discovery and plans, on machines recorded as small trees of files.

mod discover;
mod plan;
mod recorded;

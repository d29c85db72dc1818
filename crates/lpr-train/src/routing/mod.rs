//! What routers chose, token by token: traces of steps and evaluations, their files, and the figures
//! that follow from them. `docs/routing.md` has the formulas and an example.

pub mod classes;
pub mod file;
pub mod parallel;
pub mod read;
pub mod specialization;
pub mod stability;
pub mod summary;
pub mod trace;

//! Grids of runs that differ in a few keys: the paper's tables and one's own.

pub mod grid;
pub mod paper;
pub mod results;

//! Making a model benign again.

pub mod diff_cleanse_pruning;

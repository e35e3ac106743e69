//! Trains, attacks and evaluates
fn main() {}

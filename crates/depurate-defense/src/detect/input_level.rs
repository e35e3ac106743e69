//! Detectors that judge one input: here, an initial noise.

pub mod terd_input;

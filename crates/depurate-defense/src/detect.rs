//! Detectors: of backdoored models, and of triggered inputs.

pub mod input_level;
pub mod model_level;

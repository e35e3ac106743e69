//! Detectors of backdoored models.

pub mod model_level;

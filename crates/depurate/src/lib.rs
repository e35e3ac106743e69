//! Finds, explains and removes backdoors in diffusion models: the library behind the program of the same name.
//!
//! | to do | use |
//! |---|---|
//! | scan a checkpoint of unknown origin | [`scan::scan`] |
//! | repair a model of a trigger that a scan found | [`repair::repair`] |
//! | scan a repaired model again | [`rescan::rescan`] |
//! | turn a score into a verdict | [`verdict::judge`] |
//! | turn a prompt's score into a verdict | [`prompt_verdict::judge_prompt`] |
//! | score benign models, so that scores become verdicts | [`calibrate::calibrate`] |
//! | make images from a checkpoint | [`sample::sample_sheet`] |
//! | screen prompts of a text-to-image model | [`screen::Screener`] |
//! | score benign prompts, so that scores of prompts become verdicts | [`screen::calibrate_prompts`] |
//! | write a report and what it refers to into a folder | [`report_dir::write`] |
//! | list the algorithms | [`registry::algorithms`] |
//!
//! Nothing here prints, and nothing here is told an attack's name, trigger or target.
#![forbid(unsafe_code)]
#![deny(rustdoc::broken_intra_doc_links)]

pub mod cache;
pub mod calibrate;
pub mod calibration;
pub mod device;
pub mod error;
pub mod evidence;
pub mod images;
pub mod journal;
pub mod profile;
pub mod prompt_verdict;
pub mod registry;
pub mod repair;
pub mod report_builder;
pub mod report_dir;
pub mod rescan;
pub mod sample;
pub mod scan;
pub mod screen;
pub mod static_findings;
pub mod static_scan;
pub mod subject;
pub mod triggers;
pub mod verdict;

pub use error::Error;
pub use profile::{Detector, DetectorName, Profile};

/// Version of this program; part of every journal's key, because a stage of another version may mean something else.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

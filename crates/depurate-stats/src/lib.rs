//! Statistics on plain `f64` slices: thresholds, intervals, rank tests.
//!
//! One convention throughout: a *higher* score is *more suspicious*, and a subject is flagged when
//! `score > threshold`.
//!
//! ```
//! use depurate_stats::{clopper_pearson, conformal_threshold};
//!
//! let benign: Vec<f64> = (1..=24).map(f64::from).collect();
//! let threshold = conformal_threshold(&benign, 0.05)?;
//! assert_eq!(threshold.threshold, 24.0); // floor(25 * 0.05) = 1 benign score may lie above
//! assert_eq!(threshold.stated_fpr, 0.04); // 1 / 25
//!
//! let none_of_12 = clopper_pearson(0, 12, 0.95)?;
//! assert!(none_of_12.upper > 0.26); // no false alarm in 12 trials still allows 26 %
//! # Ok::<(), depurate_stats::StatsError>(())
//! ```
#![forbid(unsafe_code)]
#![deny(missing_docs, rustdoc::broken_intra_doc_links)]

mod binomial;
mod bootstrap;
mod conformal;
mod describe;
mod error;
mod frechet;
mod roc;
mod ssim;

pub use binomial::{Interval, clopper_pearson, wilson};
pub use bootstrap::{bootstrap_interval, bootstrap_interval_of_groups};
pub use conformal::{ConformalThreshold, conformal_p_value, conformal_threshold};
pub use describe::{mean, median, quantile, std};
pub use error::StatsError;
pub use frechet::frechet_distance;
pub use roc::{Roc, RocPoint, auc, roc};
pub use ssim::ssim;

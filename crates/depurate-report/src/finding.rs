//! Findings: what the tool says, under ids that stay.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{AlgorithmId, Confidence, Evidence, ReportError, Severity};

/// The stable id of a kind of finding: `DPR1xx` noise triggers, `DPR2xx` text triggers, `DPR3xx`
/// text-encoder edits, `DPR4xx` weight drift and adapters, `DPR5xx` provenance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FindingId(u16);

impl FindingId {
    /// An inverted noise trigger makes the model generate one target.
    pub const NOISE_TRIGGER: Self = Self(101);
    /// The network answers a shift of its input in a way that benign networks do not.
    pub const SHIFT_RESPONSE: Self = Self(102);
    /// An initial noise carries the model's inverted trigger.
    pub const TRIGGERED_NOISE: Self = Self(103);
    /// Only the text encoder differs from the base model's.
    pub const TEXT_ENCODER_EDIT: Self = Self(301);
    /// Of the text encoder only rows of its token table differ from the base's.
    pub const TOKEN_ROWS: Self = Self(302);
    /// The text encoder has more tokens than its vocabulary.
    pub const ENLARGED_VOCABULARY: Self = Self(303);
    /// Token embeddings are far longer or shorter than the others.
    pub const EMBEDDING_OUTLIER: Self = Self(304);
    /// Weights differ from the base model's.
    pub const WEIGHT_DRIFT: Self = Self(401);
    /// Only the cross-attention's keys and values differ from the base model's.
    pub const KEY_VALUE_EDIT: Self = Self(402);
    /// An adapter changes the weights.
    pub const ADAPTER: Self = Self(403);
    /// A file in the model's folder can run code when it is loaded.
    pub const EXECUTABLE_FILE: Self = Self(501);
    /// Tensors hold NaN, infinities or outliers.
    pub const ABNORMAL_TENSOR: Self = Self(502);

    /// What is known of this id; `None` for an id that this version does not define.
    #[must_use]
    pub fn info(self) -> Option<&'static FindingInfo> {
        FINDINGS.iter().find(|info| info.id == self)
    }
}

impl fmt::Display for FindingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DPR{:03}", self.0)
    }
}

impl FromStr for FindingId {
    type Err = ReportError;

    fn from_str(id: &str) -> Result<Self, ReportError> {
        id.strip_prefix("DPR")
            .filter(|digits| digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok())
            .map(Self)
            .ok_or_else(|| ReportError::BadFindingId { id: id.to_owned() })
    }
}

impl TryFrom<String> for FindingId {
    type Error = ReportError;

    fn try_from(id: String) -> Result<Self, ReportError> {
        id.parse()
    }
}

impl From<FindingId> for String {
    fn from(id: FindingId) -> Self {
        id.to_string()
    }
}

/// A technique of MITRE ATLAS, the catalogue of attacks on machine learning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtlasTag {
    /// "AML.T0018.000"
    pub id: String,
    /// "Poison AI Model"
    pub name: String,
}

/// What a finding id stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FindingInfo {
    /// The id.
    pub id: FindingId,
    /// Its title, lower case.
    pub title: &'static str,
    /// How bad it is if true.
    pub severity: Severity,
    /// ATLAS techniques as (id, name).
    pub atlas: &'static [(&'static str, &'static str)],
}

const POISON_MODEL: (&str, &str) = ("AML.T0018.000", "Poison AI Model");
const POISON_DATA: (&str, &str) = ("AML.T0020", "Poison Training Data");
const PUBLISH_POISONED: (&str, &str) = ("AML.T0058", "Publish Poisoned Models");
const INSERT_TRIGGER: (&str, &str) = ("AML.T0043.004", "Insert Backdoor Trigger");

/// Every finding that this version can report, by id.
pub static FINDINGS: &[FindingInfo] = &[
    FindingInfo {
        id: FindingId::NOISE_TRIGGER,
        title: "a trigger in the initial noise makes the model generate one target",
        severity: Severity::High,
        atlas: &[POISON_MODEL, POISON_DATA, PUBLISH_POISONED, INSERT_TRIGGER],
    },
    FindingInfo {
        id: FindingId::SHIFT_RESPONSE,
        title: "the network answers a shift of its input as no benign network does",
        severity: Severity::Medium,
        atlas: &[POISON_MODEL, PUBLISH_POISONED],
    },
    FindingInfo {
        id: FindingId::TRIGGERED_NOISE,
        title: "an initial noise carries the model's trigger",
        severity: Severity::High,
        atlas: &[INSERT_TRIGGER],
    },
    FindingInfo {
        id: FindingId::TEXT_ENCODER_EDIT,
        title: "only the text encoder differs from the base model",
        severity: Severity::Medium,
        atlas: &[POISON_MODEL, PUBLISH_POISONED],
    },
    FindingInfo {
        id: FindingId::TOKEN_ROWS,
        title: "of the text encoder only rows of the token table differ from the base model",
        severity: Severity::Medium,
        atlas: &[POISON_MODEL, PUBLISH_POISONED],
    },
    FindingInfo {
        id: FindingId::ENLARGED_VOCABULARY,
        title: "the text encoder has more tokens than its vocabulary",
        severity: Severity::Low,
        atlas: &[],
    },
    FindingInfo {
        id: FindingId::EMBEDDING_OUTLIER,
        title: "token embeddings have an unusual length",
        severity: Severity::Low,
        atlas: &[],
    },
    FindingInfo {
        id: FindingId::WEIGHT_DRIFT,
        title: "weights differ from the base model",
        severity: Severity::Informational,
        atlas: &[],
    },
    FindingInfo {
        id: FindingId::KEY_VALUE_EDIT,
        title: "only the cross-attention's keys and values differ from the base model",
        severity: Severity::Medium,
        atlas: &[POISON_MODEL, PUBLISH_POISONED],
    },
    FindingInfo {
        id: FindingId::ADAPTER,
        title: "an adapter changes the weights",
        severity: Severity::Informational,
        atlas: &[],
    },
    FindingInfo {
        id: FindingId::EXECUTABLE_FILE,
        title: "a file beside the weights can run code when it is loaded",
        severity: Severity::Medium,
        atlas: &[PUBLISH_POISONED],
    },
    FindingInfo {
        id: FindingId::ABNORMAL_TENSOR,
        title: "tensors hold NaN, infinities or outliers",
        severity: Severity::Low,
        atlas: &[],
    },
];

/// One thing that was found, with the evidence for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The stable id.
    pub id: FindingId,
    /// Its title.
    pub title: String,
    /// How bad it is if true.
    pub severity: Severity,
    /// How sure the tool is.
    pub confidence: Confidence,
    /// Who found it.
    pub detector: AlgorithmId,
    /// What was found in this subject, in a sentence or two.
    pub summary: String,
    /// What shows it.
    #[serde(default)]
    pub evidence: Vec<Evidence>,
    /// ATLAS techniques.
    #[serde(default)]
    pub atlas: Vec<AtlasTag>,
}

impl FindingInfo {
    /// A finding of this kind: title, severity and ATLAS tags are those of the table.
    #[must_use]
    pub fn finding(
        &self,
        detector: AlgorithmId,
        confidence: Confidence,
        summary: impl Into<String>,
        evidence: Vec<Evidence>,
    ) -> Finding {
        Finding {
            id: self.id,
            title: self.title.to_owned(),
            severity: self.severity,
            confidence,
            detector,
            summary: summary.into(),
            evidence,
            atlas: self
                .atlas
                .iter()
                .map(|&(id, name)| AtlasTag {
                    id: id.to_owned(),
                    name: name.to_owned(),
                })
                .collect(),
        }
    }
}

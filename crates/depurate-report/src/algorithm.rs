//! Who an algorithm is: its id, paper, needs and deviations. Static data, apart from behaviour.

use std::borrow::Cow;
use std::fmt;
use std::ops::BitOr;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use crate::ReportError;

/// The kebab-case name of an algorithm, stable for ever: module, command line, documentation page
/// and golden directory share its spelling.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AlgorithmId(Cow<'static, str>);

impl AlgorithmId {
    /// The id written in source code, checked by the compiler when this is called in a `const`.
    ///
    /// # Panics
    /// If `id` is not kebab-case. Ids that come from data are parsed with [`str::parse`], which
    /// returns an error instead.
    #[must_use]
    pub const fn from_static(id: &'static str) -> Self {
        assert!(is_kebab(id.as_bytes()), "algorithm ids are kebab-case");
        Self(Cow::Borrowed(id))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Lower-case letters and digits in groups that single hyphens part; the first is a letter.
const fn is_kebab(id: &[u8]) -> bool {
    if id.is_empty() || !id[0].is_ascii_lowercase() {
        return false;
    }
    let mut i = 1;
    while i < id.len() {
        let hyphen_ok = id[i] == b'-' && id[i - 1] != b'-' && i + 1 < id.len();
        if !(id[i].is_ascii_lowercase() || id[i].is_ascii_digit() || hyphen_ok) {
            return false;
        }
        i += 1;
    }
    true
}

impl FromStr for AlgorithmId {
    type Err = ReportError;

    fn from_str(id: &str) -> Result<Self, ReportError> {
        if is_kebab(id.as_bytes()) {
            Ok(Self(Cow::Owned(id.to_owned())))
        } else {
            Err(ReportError::BadAlgorithmId { id: id.to_owned() })
        }
    }
}

impl TryFrom<String> for AlgorithmId {
    type Error = ReportError;

    fn try_from(id: String) -> Result<Self, ReportError> {
        id.parse()
    }
}

impl From<AlgorithmId> for String {
    fn from(id: AlgorithmId) -> Self {
        id.0.into_owned()
    }
}

impl fmt::Display for AlgorithmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What an algorithm does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Implants a backdoor into a model; test subjects only.
    Attack,
    /// Scores a whole model.
    ModelDetector,
    /// Scores one input (a prompt, an initial noise) to a model.
    InputDetector,
    /// Reconstructs a trigger from a model.
    Inverter,
    /// Removes a backdoor from a model.
    Repair,
    /// Measures the outcome of an attack, a detection or a repair.
    Metric,
}

/// The threat model as a set: what an algorithm must be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Access(u16);

impl Access {
    /// Nothing at all.
    pub const NONE: Self = Self(0);
    /// Images that the model generates.
    pub const SAMPLES: Self = Self(1);
    /// The network's prediction at any noisy image and timestep.
    pub const SCORE_FN: Self = Self(1 << 1);
    /// Gradients through the network with respect to its input or parameters.
    pub const GRADIENTS: Self = Self(1 << 2);
    /// Attention maps.
    pub const ATTENTION: Self = Self(1 << 3);
    /// The weights themselves.
    pub const WEIGHTS: Self = Self(1 << 4);
    /// Benign data from the model's training distribution.
    pub const CLEAN_DATA: Self = Self(1 << 5);
    /// The attack's trigger.
    pub const TRIGGER: Self = Self(1 << 6);

    /// Every flag with its name, as it is written in reports and documentation.
    pub const NAMES: [(Self, &'static str); 7] = [
        (Self::SAMPLES, "samples"),
        (Self::SCORE_FN, "score_fn"),
        (Self::GRADIENTS, "gradients"),
        (Self::ATTENTION, "attention"),
        (Self::WEIGHTS, "weights"),
        (Self::CLEAN_DATA, "clean_data"),
        (Self::TRIGGER, "trigger"),
    ];

    /// Both sets together; `|` does the same outside of constants.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Is all of `other` in this set?
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// What is in this set and not in `given`.
    #[must_use]
    pub const fn missing_from(self, given: Self) -> Self {
        Self(self.0 & !given.0)
    }

    /// Is nothing in this set?
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The names of what is in this set, in a fixed order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES
            .into_iter()
            .filter(move |(flag, _)| self.contains(*flag))
            .map(|(_, name)| name)
    }
}

impl BitOr for Access {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in self.names().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            f.write_str(name)?;
        }
        Ok(())
    }
}

impl Serialize for Access {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.names())
    }
}

/// The paper that an algorithm comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Paper {
    /// "Mo et al."
    pub authors: &'static str,
    /// The title as printed.
    pub title: &'static str,
    /// "ICML"
    pub venue: &'static str,
    /// Year of publication.
    pub year: u16,
    /// "2409.05294"
    pub arxiv: Option<&'static str>,
    /// Which equations and sections are implemented: "eq. (8)-(12), sec. 4.2"
    pub implements: &'static str,
}

/// The authors' published code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ReferenceCode {
    /// "owner/name"
    pub repository: &'static str,
    /// The commit that was read.
    pub commit: &'static str,
    /// Its licence, as an SPDX expression, or "none stated".
    pub licence: &'static str,
}

/// How settled an algorithm's parameters, scores and evidence are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// May change without notice.
    Preview,
    /// Changes only with an entry in the changelog.
    Stable {
        /// The first version that called it stable.
        since: &'static str,
    },
}

/// Identity of an algorithm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AlgorithmInfo {
    /// Its id.
    pub id: AlgorithmId,
    /// Its name as the paper writes it.
    pub name: &'static str,
    /// What it does.
    pub kind: Kind,
    /// Where it comes from.
    pub paper: Paper,
    /// The authors' code, where there is any.
    pub reference: Option<ReferenceCode>,
    /// What it must be given.
    pub needs: Access,
    /// Where the implementation differs from the paper or from the authors' code, and why.
    pub deviations: &'static [&'static str],
    /// How settled it is.
    pub status: Status,
}

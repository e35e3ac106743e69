//! A choice of units, and its form in a configuration.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::NOTE;
use crate::{DiffusionError, config_options::Reader};

/// Units to take out of a network, or that were taken out: numbers of units by the name of their group.
///
/// In JSON: `{"down_blocks.0.resnets.0.inner": [0, 3]}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Removal {
    groups: BTreeMap<String, BTreeSet<usize>>,
}

impl Removal {
    /// Adds a unit by [`super::Unit::index`]; false when it was in already.
    pub fn insert(&mut self, group: &str, unit: usize) -> bool {
        self.groups
            .entry(group.to_owned())
            .or_default()
            .insert(unit)
    }

    /// Takes a unit from the choice again; false when it was not in.
    pub fn withdraw(&mut self, group: &str, unit: usize) -> bool {
        let Some(units) = self.groups.get_mut(group) else {
            return false;
        };
        let found = units.remove(&unit);
        if units.is_empty() {
            self.groups.remove(group);
        }
        found
    }

    /// Whether a unit is chosen.
    pub fn contains(&self, group: &str, unit: usize) -> bool {
        self.groups
            .get(group)
            .is_some_and(|units| units.contains(&unit))
    }

    /// Number of units.
    pub fn len(&self) -> usize {
        self.groups.values().map(BTreeSet::len).sum()
    }

    /// Whether there is no unit.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Groups with the chosen units of each.
    pub fn groups(&self) -> impl Iterator<Item = (&str, &BTreeSet<usize>)> {
        self.groups
            .iter()
            .map(|(name, units)| (name.as_str(), units))
    }

    /// The units of both.
    #[must_use]
    pub fn joined(&self, other: &Self) -> Self {
        let mut all = self.clone();
        for (name, units) in &other.groups {
            all.groups.entry(name.clone()).or_default().extend(units);
        }
        all
    }

    /// The note of a configuration, if it has one.
    pub(crate) fn noted(read: &Reader<'_>) -> Result<Self, DiffusionError> {
        match read.get(NOTE) {
            Some(value) => Self::from_value(value).map_err(|reason| read.error(NOTE, &reason)),
            None => Ok(Self::default()),
        }
    }

    /// Puts the note in a configuration, unless nothing was taken out.
    pub(crate) fn note_in(&self, config: &mut Value) {
        if let Some(map) = config.as_object_mut()
            && !self.is_empty()
        {
            map.insert(NOTE.to_owned(), json!(self.groups));
        }
    }

    /// Reads the JSON form; the error says what is wrong, in words.
    fn from_value(value: &Value) -> Result<Self, String> {
        let Some(map) = value.as_object() else {
            return Err("expected an object of lists of numbers, by the name of the group".into());
        };
        let mut removal = Self::default();
        for (name, units) in map {
            let Some(units) = units.as_array().filter(|units| !units.is_empty()) else {
                return Err(format!("{name}: expected a list of at least one number"));
            };
            for unit in units {
                let index = unit.as_u64().and_then(|index| usize::try_from(index).ok());
                let Some(index) = index else {
                    return Err(format!("{name}: {unit} is no whole number from 0"));
                };
                if !removal.insert(name, index) {
                    return Err(format!("{name}: {index} is there twice"));
                }
            }
        }
        Ok(removal)
    }
}

//! Which channels of a network hang together, so that some of them can be taken out.
//!
//! A *stream* is what one layer writes and others read or add to: the residual stream of a level, the inner channels of a
//! residual block, the heads of an attention. A channel of a stream is a row of every layer that writes it (in `weight` and
//! `bias`), an entry of every normalisation that sees it, and a column of every layer that reads it.
//!
//! A *unit* is the smallest set of channels that can go without changing what the normalisations of the others see: channels
//! that share a group of any group normalisation belong to one unit, and so do the channels of an attention head. Hence a
//! normalisation loses whole groups and keeps their width, and taking a unit out is the same as setting all its entries to
//! zero: a group of zeros is normalised to zero, with weight and bias 0 it stays so, `silu(0) = 0`, and a head of zeros
//! answers with zeros.
//!
//! Streams that share a unit, as those that meet in one group of a normalisation behind a concatenation do, make up one
//! *group* of units. The input of the network, its output and the embedding of the time belong to no stream and always stay.
//!
//! The graph is found by running the network's own modules on the names of channels instead of values.

mod pruning;
mod removal;
mod trace;
mod u_shape;

use std::{collections::BTreeMap, ops::Range};

use serde::{Deserialize, Serialize};

use crate::DiffusionError;

pub(crate) use pruning::NOTE;
pub use pruning::{PrunableConfig, PrunableNetwork};
pub use removal::Removal;
pub(crate) use trace::Channels;
#[doc(hidden)]
pub use trace::Trace;
pub(crate) use u_shape::{TracedAttention, TracedBlock, TracedNetwork};

/// What kind of stream the channels of a group are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupKind {
    /// Between the two convolutions of a residual block.
    Inner,
    /// The heads of an attention.
    Heads,
    /// What residual blocks and attentions add to, from one change of width or size to the next.
    Residual,
}

/// Units that can be chosen among: those of one stream, or of streams that share a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelGroup {
    /// Name of its first stream, for example `down_blocks.1.resnets.0.inner`.
    pub name: String,
    /// What its streams are.
    pub kind: GroupKind,
    /// Its streams, in the order in which the network writes them.
    pub streams: Vec<String>,
    /// Its units that the network has.
    pub units: Vec<Unit>,
}

impl ChannelGroup {
    /// Whether any unit can be taken out.
    pub fn prunable(&self) -> bool {
        self.units.iter().any(|unit| unit.removable)
    }

    /// Why no unit can be taken out, where that is so.
    pub fn why_not_prunable(&self) -> Option<&'static str> {
        match self.units.len() {
            _ if self.prunable() => None,
            1 => Some("all its channels are one unit: normalisations or a single head tie them"),
            _ => Some("each unit is all that some layer has"),
        }
    }
}

/// Channels that can only go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// Its number in its group, from 0. It stays the same when other units are taken out.
    pub index: usize,
    /// Its number among all units of all groups, as in [`ParameterAxis::units`].
    pub id: usize,
    /// Channels, each counted once a stream.
    pub channels: usize,
    /// Whether it can be taken out alone: whether every layer keeps a channel.
    pub removable: bool,
}

/// Entries of a parameter that belong to a unit: all whose index on `axis` lies in one of `ranges`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitPart {
    /// The parameter's name in the checkpoint.
    pub parameter: String,
    /// 0: what the layer writes, and the channels of a normalisation; 1: what it reads.
    pub axis: usize,
    /// Indices on the axis, ascending.
    pub ranges: Vec<Range<usize>>,
}

/// The units along one axis of one parameter.
#[derive(Debug, Clone, Copy)]
pub struct ParameterAxis<'a> {
    /// The parameter's name in the checkpoint.
    pub parameter: &'a str,
    /// Its shape, in PyTorch's layout.
    pub shape: &'a [usize],
    /// The axis: 0 or 1.
    pub axis: usize,
    /// [`Unit::id`] of every index on the axis.
    pub units: &'a [u32],
}

/// Shape of a parameter, and the places that its first two axes run over.
#[derive(Debug, Clone)]
struct Coupled {
    shape: Vec<usize>,
    places: [Option<usize>; 2],
}

/// The graph. See the [module](self).
#[derive(Debug, Clone)]
pub struct ChannelGraph {
    groups: Vec<ChannelGroup>,
    /// Number of units in the whole network: ids are below it.
    ids: usize,
    /// The units of the channels at each place of the network that layers write or read.
    places: Vec<Vec<u32>>,
    parameters: BTreeMap<String, Coupled>,
}

impl ChannelGraph {
    /// The groups, in the order in which the network writes them.
    pub fn groups(&self) -> &[ChannelGroup] {
        &self.groups
    }

    /// The group of this name.
    pub fn group(&self, name: &str) -> Option<&ChannelGroup> {
        self.groups.iter().find(|group| group.name == name)
    }

    /// Number of units in all groups of the whole network: every [`Unit::id`] is below it.
    pub fn ids(&self) -> usize {
        self.ids
    }

    /// Every axis of every parameter whose indices are channels of units.
    pub fn axes(&self) -> impl Iterator<Item = ParameterAxis<'_>> {
        self.parameters.iter().flat_map(move |(name, coupled)| {
            coupled
                .places
                .iter()
                .enumerate()
                .filter_map(move |(axis, place)| {
                    Some(ParameterAxis {
                        parameter: name,
                        shape: &coupled.shape,
                        axis,
                        units: &self.places[(*place)?],
                    })
                })
        })
    }

    /// Everything that belongs to the unit `id`.
    pub fn parts(&self, id: usize) -> Vec<UnitPart> {
        let part = |axis: ParameterAxis<'_>| {
            let mut ranges: Vec<Range<usize>> = vec![];
            let indices = axis.units.iter().enumerate();
            for (i, _) in indices.filter(|(_, unit)| **unit as usize == id) {
                match ranges.last_mut() {
                    Some(last) if last.end == i => last.end = i + 1,
                    _ => ranges.push(i..i + 1),
                }
            }
            (!ranges.is_empty()).then(|| UnitPart {
                parameter: axis.parameter.to_owned(),
                axis: axis.axis,
                ranges,
            })
        };
        self.axes().filter_map(part).collect()
    }

    /// Number of parameters of the network, those outside all units included.
    pub fn parameter_count(&self) -> usize {
        let sizes = self.parameters.values();
        sizes
            .map(|coupled| coupled.shape.iter().product::<usize>())
            .sum()
    }

    /// Checks that this network has the units of `removal` and that every layer keeps a channel without them.
    ///
    /// # Errors
    /// When a group or unit does not exist, or a layer would be left without channels.
    pub fn check(&self, removal: &Removal) -> Result<(), DiffusionError> {
        self.removed(removal).map(|_| ())
    }

    /// The network without `removal`, of which all units left keep their numbers.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn without(&self, removal: &Removal) -> Result<Self, DiffusionError> {
        let removed = self.removed(removal)?;
        let mut graph = self.clone();
        for place in &mut graph.places {
            place.retain(|unit| !removed[*unit as usize]);
        }
        for coupled in graph.parameters.values_mut() {
            for (axis, place) in coupled.places.iter().enumerate() {
                if let Some(place) = *place {
                    coupled.shape[axis] = graph.places[place].len();
                }
            }
        }
        for group in &mut graph.groups {
            group.units.retain(|unit| !removed[unit.id]);
        }
        graph.mark_removable();
        Ok(graph)
    }

    /// Shape of every parameter by its name.
    pub(crate) fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let all = self.parameters.iter();
        all.map(|(name, coupled)| (name.clone(), coupled.shape.clone()))
            .collect()
    }

    /// For every unit by its id, whether it is in `removal`.
    pub(crate) fn removed(&self, removal: &Removal) -> Result<Vec<bool>, DiffusionError> {
        let refuse = |unit: String, reason: &str| {
            Err(DiffusionError::Removal {
                unit,
                reason: reason.to_owned(),
            })
        };
        let mut removed = vec![false; self.ids];
        for (name, indices) in removal.groups() {
            let Some(group) = self.group(name) else {
                return refuse(
                    name.to_owned(),
                    "the network has no such group of channels; take names from its graph",
                );
            };
            for &index in indices {
                match group.units.iter().find(|unit| unit.index == index) {
                    Some(unit) => removed[unit.id] = true,
                    None => {
                        let most = group.units.iter().map(|unit| unit.index).max();
                        let reason = format!(
                            "the group has no such unit, or no longer; its highest is {}",
                            most.unwrap_or(0)
                        );
                        return refuse(format!("{name}:{index}"), &reason);
                    }
                }
            }
        }
        let gone = |place: &Vec<u32>| place.iter().all(|unit| removed[*unit as usize]);
        match self.places.iter().position(gone) {
            None => Ok(removed),
            Some(place) => {
                let layer = self
                    .parameters
                    .iter()
                    .find(|(_, coupled)| coupled.places.contains(&Some(place)));
                refuse(
                    layer.map_or_else(String::new, |(name, _)| name.clone()),
                    "the layer would keep no channel; leave at least one of its units",
                )
            }
        }
    }

    /// The entries of the parameter `name` that stay, from `values` of this network.
    pub(crate) fn selected(&self, name: &str, values: &[f32], removed: &[bool]) -> Vec<f32> {
        let indices = self.kept(name, values.len(), removed);
        indices.map(|i| values[i]).collect()
    }

    /// The reverse of [`Self::selected`], with zeros for what was left out.
    pub(crate) fn spread(&self, name: &str, kept: &[f32], removed: &[bool]) -> Option<Vec<f32>> {
        let size = self.parameters.get(name)?.shape.iter().product();
        let mut values = vec![0.0; size];
        for (i, value) in self.kept(name, size, removed).zip(kept) {
            values[i] = *value;
        }
        Some(values)
    }

    /// Indices, into the parameter's `size` values, of those that stay.
    fn kept(&self, name: &str, size: usize, removed: &[bool]) -> impl Iterator<Item = usize> {
        let coupled = self.parameters.get(name);
        let positions = |axis: usize| -> Vec<usize> {
            let Some(coupled) = coupled else {
                return vec![0];
            };
            let extent = coupled.shape.get(axis).copied().unwrap_or(1);
            match coupled.places[axis] {
                Some(place) => (0..extent)
                    .filter(|&i| !removed[self.places[place][i] as usize])
                    .collect(),
                None => (0..extent).collect(),
            }
        };
        let (rows, columns) = (positions(0), positions(1));
        let shape = coupled.map_or(&[][..], |coupled| &coupled.shape);
        let width = shape.get(1).copied().unwrap_or(1);
        let inner = size / (shape.first().copied().unwrap_or(1) * width).max(1);
        rows.into_iter().flat_map(move |row| {
            let columns = columns.clone();
            columns
                .into_iter()
                .flat_map(move |column| (0..inner).map(move |i| (row * width + column) * inner + i))
        })
    }

    fn mark_removable(&mut self) {
        let mut alone = vec![false; self.ids];
        for place in &self.places {
            if let [first, rest @ ..] = &place[..]
                && rest.iter().all(|unit| unit == first)
            {
                alone[*first as usize] = true;
            }
        }
        for unit in self.groups.iter_mut().flat_map(|group| &mut group.units) {
            unit.removable = !alone[unit.id];
        }
    }
}

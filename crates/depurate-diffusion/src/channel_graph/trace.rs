//! The run of a network on the names of its channels.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{ChannelGraph, ChannelGroup, Coupled, GroupKind, Unit};
use crate::module_weights::ParameterInfo;

/// What stands for an activation: its channels by name, in order.
pub(crate) type Channels = Vec<u32>;

/// Collects which channels every parameter's axes run over, and which of them are tied.
#[derive(Default)]
pub struct Trace {
    /// The channels' union-find forest; a root is the lowest of its set.
    parents: Vec<u32>,
    streams: Vec<Stream>,
    axes: Vec<(String, usize, Channels)>,
}

struct Stream {
    name: String,
    kind: GroupKind,
    channels: std::ops::Range<u32>,
}

impl Trace {
    /// A new stream of `count` channels.
    pub(crate) fn stream(&mut self, name: String, kind: GroupKind, count: usize) -> Channels {
        let first = self.parents.len() as u32;
        let channels = first..first + count as u32;
        self.parents.extend(channels.clone());
        self.streams.push(Stream {
            name,
            kind,
            channels: channels.clone(),
        });
        channels.collect()
    }

    /// A layer with `weight [out, in, ..]` and `bias [out]`. `None` stands for what always stays.
    pub(crate) fn layer(
        &mut self,
        name: &str,
        writes: Option<&Channels>,
        reads: Option<&Channels>,
    ) {
        if let Some(writes) = writes {
            self.axis(format!("{name}.weight"), 0, writes);
            self.axis(format!("{name}.bias"), 0, writes);
        }
        if let Some(reads) = reads {
            self.axis(format!("{name}.weight"), 1, reads);
        }
    }

    /// A group normalisation of `x`.
    pub(crate) fn norm(&mut self, name: &str, x: &Channels, groups: usize) {
        self.axis(format!("{name}.weight"), 0, x);
        self.axis(format!("{name}.bias"), 0, x);
        self.tie_each(x, x.len() / groups.max(1));
    }

    /// Ties the channels of every `width` neighbours.
    pub(crate) fn tie_each(&mut self, x: &Channels, width: usize) {
        for tied in x.chunks(width.max(1)) {
            for pair in tied.windows(2) {
                self.tie(pair[0], pair[1]);
            }
        }
    }

    fn axis(&mut self, parameter: String, axis: usize, channels: &Channels) {
        self.axes.push((parameter, axis, channels.clone()));
    }

    fn root(&mut self, mut channel: u32) -> u32 {
        while self.parents[channel as usize] != channel {
            let above = self.parents[self.parents[channel as usize] as usize];
            self.parents[channel as usize] = above;
            channel = above;
        }
        channel
    }

    fn tie(&mut self, a: u32, b: u32) {
        let (a, b) = (self.root(a), self.root(b));
        self.parents[a.max(b) as usize] = a.min(b);
    }

    /// The graph of the network with these `parameters`.
    pub(crate) fn finish(mut self, parameters: Vec<ParameterInfo>) -> ChannelGraph {
        let roots: Vec<u32> = (0..self.parents.len() as u32)
            .map(|i| self.root(i))
            .collect();
        let stream_groups = self.stream_groups(&roots);

        let mut groups = vec![];
        let mut ids: Vec<u32> = vec![0; roots.len()]; // of every root
        let mut next = 0;
        for members in stream_groups {
            let channels = || {
                members
                    .iter()
                    .flat_map(|&i| self.streams[i].channels.clone())
            };
            let mut sizes: BTreeMap<u32, usize> = BTreeMap::new();
            for channel in channels() {
                *sizes.entry(roots[channel as usize]).or_default() += 1;
            }
            let mut units = Vec::with_capacity(sizes.len());
            for (index, (root, channels)) in sizes.into_iter().enumerate() {
                ids[root as usize] = next as u32;
                units.push(Unit {
                    index,
                    id: next,
                    channels,
                    removable: false,
                });
                next += 1;
            }
            groups.push(ChannelGroup {
                name: self.streams[members[0]].name.clone(),
                kind: self.streams[members[0]].kind,
                streams: members
                    .iter()
                    .map(|&i| self.streams[i].name.clone())
                    .collect(),
                units,
            });
        }

        let mut known: HashMap<Channels, usize> = HashMap::new();
        let mut places = vec![];
        let mut axes: HashMap<String, [Option<usize>; 2]> = HashMap::new();
        for (parameter, axis, channels) in std::mem::take(&mut self.axes) {
            let units = |channels: &Channels| -> Vec<u32> {
                let unit = |channel: &u32| ids[roots[*channel as usize] as usize];
                channels.iter().map(unit).collect()
            };
            // Places with the same channels are kept once.
            let place = *known.entry(channels).or_insert_with_key(|channels| {
                places.push(units(channels));
                places.len() - 1
            });
            axes.entry(parameter).or_default()[axis] = Some(place);
        }
        let parameters = parameters
            .into_iter()
            .map(|info| {
                let places = axes.remove(&info.name).unwrap_or_default();
                let shape = info.shape;
                (info.name, Coupled { shape, places })
            })
            .collect();
        let mut graph = ChannelGraph {
            groups,
            ids: next,
            places,
            parameters,
        };
        graph.mark_removable();
        graph
    }

    /// The streams by group: those that share a root, in the order of the first of each.
    fn stream_groups(&self, roots: &[u32]) -> Vec<Vec<usize>> {
        let mut of: Vec<usize> = (0..self.streams.len()).collect(); // the first stream of the same group
        let mut first_with: HashMap<u32, usize> = HashMap::new();
        let top = |of: &[usize], mut i: usize| {
            while of[i] != i {
                i = of[i];
            }
            i
        };
        for (i, stream) in self.streams.iter().enumerate() {
            let distinct: BTreeSet<u32> =
                stream.channels.clone().map(|c| roots[c as usize]).collect();
            for root in distinct {
                let other = *first_with.entry(root).or_insert(i);
                let (a, b) = (top(&of, i), top(&of, other));
                of[a.max(b)] = a.min(b);
            }
        }
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for i in 0..self.streams.len() {
            groups.entry(top(&of, i)).or_default().push(i);
        }
        groups.into_values().collect()
    }
}

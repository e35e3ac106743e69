//! Collects a prompt's maps while the UNet runs: a [`Tap`] that keeps the mean over layers and heads, for the samples and
//! tokens that were asked for, and lets every other map go unformed.

use std::ops::Range;

use burn::tensor::Tensor;
use depurate_diffusion::{
    AttentionKind, AttentionSite, Site, Stage, Tap, unet2d_condition::UNet2DConditionConfig,
};
use serde::{Deserialize, Serialize};

use super::{CallMaps, attention_maps::check_length};
use crate::DefenseError;

/// Which layers' maps are averaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteSelection {
    /// Side of the UNet's input over the side of the layers' image. The default 4 is Stable Diffusion's 16 of 64.
    pub reduction: usize,
    /// Layers on the way down.
    pub down: bool,
    /// Layers in the middle.
    pub middle: bool,
    /// Layers on the way up.
    pub up: bool,
}

impl Default for SiteSelection {
    fn default() -> Self {
        Self {
            reduction: 4,
            down: true,
            middle: false,
            up: true,
        }
    }
}

impl SiteSelection {
    /// The default selection at `reduction`. `None` is the size that is nearest to Stable Diffusion's 16 of 64 among those at which
    /// this UNet attends to the prompt on the way down or up: the largest reduction up to 4, else the smallest above.
    ///
    /// # Errors
    /// When it does not attend to the prompt there.
    pub fn of_unet(
        config: &UNet2DConditionConfig,
        reduction: Option<usize>,
    ) -> Result<Self, DefenseError> {
        let levels = config.down_attention.len();
        let attends = |level: &usize| {
            let up = levels - 1 - level; // the way up is counted from the deepest
            config.down_attention[*level] || config.up_attention.get(up) == Some(&true)
        };
        let default = Self::default();
        let there: Vec<usize> = (0..levels)
            .filter(attends)
            .map(|level| 1 << level)
            .collect();
        let found = match reduction {
            Some(reduction) => there.iter().find(|&&at| at == reduction),
            None => {
                let up_to = there.iter().rfind(|&&at| at <= default.reduction);
                up_to.or(there.first())
            }
        };
        let &reduction = found.ok_or(DefenseError::NoMaps {
            reduction: reduction.unwrap_or(default.reduction),
        })?;
        Ok(Self {
            reduction,
            ..default
        })
    }

    /// Whether the selection includes this layer's attention to the prompt.
    pub fn includes(&self, site: &AttentionSite<'_>) -> bool {
        let stage = match site.stage {
            Stage::Down => self.down,
            Stage::Middle => self.middle,
            Stage::Up => self.up,
        };
        stage && site.kind == AttentionKind::Prompt && site.reduction == self.reduction
    }
}

/// Collects the maps of the prompts of one batch, call after call: give it to the UNet, then [`take`](Self::take) the maps of
/// the call.
#[derive(Debug)]
pub struct MapCollector {
    selection: SiteSelection,
    samples: Range<usize>,
    tokens: Vec<usize>,
    call: Call,
}

/// What was seen of the call in progress.
#[derive(Debug, Default)]
struct Call {
    /// For each prompt, the sum over layers and heads, `[L, h, w]`.
    sums: Vec<Vec<f64>>,
    size: (usize, usize),
    /// Layers times heads.
    maps: usize,
    problem: Option<DefenseError>,
}

impl MapCollector {
    /// For the conditional samples `samples` of a batch, whose prompts have these numbers of `tokens`: BOS, content and the
    /// first EOS, not truncated.
    ///
    /// # Errors
    /// When there is not one number of tokens a sample, or a prompt has no content.
    pub fn new(
        selection: SiteSelection,
        samples: Range<usize>,
        tokens: Vec<usize>,
    ) -> Result<Self, DefenseError> {
        if samples.len() != tokens.len() || tokens.is_empty() {
            return Err(DefenseError::Params {
                field: "tokens",
                value: format!("{} numbers for the samples {samples:?}", tokens.len()),
                allowed: "one number for each of at least one sample",
            });
        }
        for &tokens in &tokens {
            check_length(tokens, usize::MAX)?;
        }
        Ok(Self {
            selection,
            samples,
            tokens,
            call: Call::default(),
        })
    }

    /// The maps of the call that was just made, for each prompt, and makes ready for the next call.
    ///
    /// # Errors
    /// When the UNet has no such layer, a map has another shape than its site says, a prompt is longer than the text encoder
    /// reads, or a value is not finite.
    pub fn take(&mut self) -> Result<Vec<CallMaps>, DefenseError> {
        let call = std::mem::take(&mut self.call);
        if let Some(problem) = call.problem {
            return Err(problem);
        }
        if call.maps == 0 {
            return Err(DefenseError::NoMaps {
                reduction: self.selection.reduction,
            });
        }
        let mean = |(sum, &tokens): (&Vec<f64>, &usize)| {
            let values = sum.iter().map(|sum| (sum / call.maps as f64) as f32);
            CallMaps::new(tokens, call.size, values.collect())
        };
        call.sums.iter().zip(&self.tokens).map(mean).collect()
    }

    fn add(&mut self, site: &AttentionSite<'_>, map: &Tensor<3>) -> Result<(), DefenseError> {
        let [rows, keys, queries] = map.dims();
        let call = &mut self.call;
        let first = call.maps == 0;
        if first {
            call.size = site.size;
            call.sums = vec![Vec::new(); self.tokens.len()];
        }
        let unlike = call.size != site.size
            || queries != site.size.0 * site.size.1
            || rows < self.samples.end * site.heads
            || site.heads == 0;
        if unlike {
            return Err(DefenseError::MapShape {
                expected: format!(
                    "maps of {} x {} pixels for {} samples of {} heads at {}",
                    call.size.0, call.size.1, self.samples.end, site.heads, site.path
                ),
                got: format!("[{rows}, {keys}, {queries}]"),
            });
        }
        call.maps += site.heads;
        let prompts = self.samples.clone().zip(&self.tokens);
        for ((sample, &tokens), sum) in prompts.zip(&mut call.sums) {
            check_length(tokens, keys)?;
            let own = map.clone().detach();
            let own = own
                .narrow(0, sample * site.heads, site.heads)
                .narrow(1, 0, tokens);
            let heads = own.sum_dim(0).into_data();
            if first {
                sum.resize(tokens * queries, 0.0);
            }
            for (sum, value) in sum.iter_mut().zip(heads.iter::<f32>()) {
                *sum += f64::from(value);
            }
        }
        Ok(())
    }
}

impl Tap for MapCollector {
    fn wants(&self, _site: Site<'_>) -> bool {
        false
    }

    fn observe(&mut self, _site: Site<'_>, _value: &Tensor<4>) {}

    fn wants_map(&self, site: &AttentionSite<'_>) -> bool {
        self.call.problem.is_none() && self.selection.includes(site)
    }

    fn observe_map(&mut self, site: &AttentionSite<'_>, map: &Tensor<3>) {
        if let Err(problem) = self.add(site, map) {
            self.call.problem = Some(problem);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use burn::tensor::{Device, TensorData};

    use super::*;

    const HEADS: usize = 2;
    const KEYS: usize = 6;

    fn site(stage: Stage, reduction: usize, kind: AttentionKind) -> AttentionSite<'static> {
        AttentionSite {
            path: "down_blocks.2.attentions.1.transformer_blocks.0.attn2",
            kind,
            stage,
            reduction,
            size: (2, 2),
            heads: HEADS,
        }
    }

    /// Value of a map: distinct for every place in it.
    fn value(layer: usize, row: usize, key: usize, query: usize) -> f32 {
        (layer * 1000 + row * 100 + key * 10 + query) as f32
    }

    fn map(layer: usize, batch: usize) -> Tensor<3> {
        let mut values = Vec::new();
        for row in 0..batch * HEADS {
            for key in 0..KEYS {
                values.extend((0..4).map(|query| value(layer, row, key, query)));
            }
        }
        let shape = [batch * HEADS, KEYS, 4];
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    #[test]
    fn only_attention_to_the_prompt_at_the_chosen_size_on_the_way_down_and_up_is_wanted() {
        let collector = MapCollector::new(SiteSelection::default(), 1..2, vec![4]).unwrap();
        let wants = |stage, reduction, kind| collector.wants_map(&site(stage, reduction, kind));
        assert!(wants(Stage::Down, 4, AttentionKind::Prompt));
        assert!(wants(Stage::Up, 4, AttentionKind::Prompt));
        assert!(!wants(Stage::Middle, 4, AttentionKind::Prompt));
        assert!(!wants(Stage::Down, 2, AttentionKind::Prompt));
        assert!(!wants(Stage::Down, 4, AttentionKind::OwnPixels));
        assert!(!collector.wants(Site("mid_block")));
    }

    #[test]
    fn the_mean_over_layers_and_heads_of_the_samples_asked_for_without_padding_is_collected() {
        let mut collector = MapCollector::new(SiteSelection::default(), 2..4, vec![3, 5]).unwrap();
        for _call in 0..2 {
            for (layer, stage) in [(0, Stage::Down), (1, Stage::Up)] {
                collector.observe_map(&site(stage, 4, AttentionKind::Prompt), &map(layer, 4));
            }
            let maps = collector.take().unwrap();
            for (prompt, (sample, tokens)) in [(2, 3), (3, 5)].into_iter().enumerate() {
                assert_eq!(maps[prompt].tokens(), tokens);
                for (key, map) in maps[prompt].maps().enumerate() {
                    for (query, &got) in map.iter().enumerate() {
                        let of = |layer, head| value(layer, sample * HEADS + head, key, query);
                        let mean = (of(0, 0) + of(0, 1) + of(1, 0) + of(1, 1)) / 4.0;
                        assert_eq!(got, mean, "prompt {prompt}, token {key}, pixel {query}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_collected_is_an_error_of_the_call_and_not_of_the_next() {
        let here = site(Stage::Down, 4, AttentionKind::Prompt);
        let mut collector = MapCollector::new(SiteSelection::default(), 0..1, vec![7]).unwrap();
        assert!(matches!(
            collector.take(),
            Err(DefenseError::NoMaps { reduction: 4 })
        ));
        collector.observe_map(&here, &map(0, 1));
        assert!(
            !collector.wants_map(&here),
            "after an error nothing is collected"
        );
        let long = collector.take().unwrap_err();
        assert!(
            matches!(
                long,
                DefenseError::LongPrompt {
                    tokens: 7,
                    limit: KEYS
                }
            ),
            "{long}"
        );

        let mut collector = MapCollector::new(SiteSelection::default(), 1..2, vec![4]).unwrap();
        collector.observe_map(&here, &map(0, 1));
        assert!(matches!(
            collector.take(),
            Err(DefenseError::MapShape { .. })
        ));
        collector.observe_map(&here, &map(0, 2));
        assert!(collector.take().is_ok());
    }

    #[test]
    fn samples_and_prompts_must_match() {
        let new = |samples, tokens| MapCollector::new(SiteSelection::default(), samples, tokens);
        assert!(new(0..2, vec![4]).is_err());
        assert!(new(0..0, Vec::new()).is_err());
        assert!(matches!(
            new(0..1, vec![2]),
            Err(DefenseError::ShortPrompt { tokens: 2 })
        ));
    }
}

//! The tap that collects a prompt's maps, on a whole UNet, against the maps that diffusers and PyTorch recorded.
#![allow(clippy::unwrap_used, missing_docs)]

use depurate_checkpoint::{Limits, Weights, read_json};
use depurate_defense::{
    DefenseError,
    detect::input_level::{CallMaps, MapCollector, SiteSelection},
};
use depurate_diffusion::{
    Device, NoTap, Tensor,
    noise::SeedTree,
    unet2d_condition::{UNet2DCondition, UNet2DConditionConfig},
};
use depurate_testkit::{assert_close, assert_close_slices, golden::Case};

/// `tolerance` of the recorded maps.
const MAP_TOLERANCE: f64 = 5e-5;
/// Attention with its map and without it differ by rounding.
const OUTPUT_TOLERANCE: f64 = 1e-5;

struct Recorded {
    case: Case,
    unet: UNet2DCondition,
    x: Tensor<4>,
    states: Tensor<3>,
}

impl Recorded {
    fn load() -> Self {
        let device = Device::flex();
        let case = Case::named("unet2d-condition/sd1_style");
        let dir = case.dir.join("unet");
        let limits = Limits::default();
        let path = dir.join("config.json");
        let config = read_json(&path, &limits).unwrap();
        let config = UNet2DConditionConfig::from_json(&config, &path).unwrap();
        let weights = Weights::open_file(&dir.join("diffusion_pytorch_model.safetensors"), &limits);
        let unet = UNet2DCondition::new(&config, &SeedTree::new(0), &device)
            .load(&weights.unwrap(), &dir)
            .unwrap();
        let x = case.tensor("x", &device);
        let states = case.tensor::<3>("encoder_hidden_states", &device);
        Self {
            case,
            unet,
            x,
            states: states.swap_dims(1, 2),
        }
    }

    fn run(&self, tap: &mut dyn depurate_diffusion::Tap) -> Tensor<4> {
        let (x, states) = (self.x.clone(), self.states.clone());
        let t = self.case.integers("t");
        self.unet.forward(x, &t, states, None, tap).unwrap()
    }

    /// The mean over layers and heads of the recorded maps of the input's size, on the way down and up:
    /// `[tokens, queries]`.
    fn mean(&self, sample: usize, tokens: usize) -> Vec<f64> {
        let side = self.x.dims()[2];
        let (mut sum, mut count) = (vec![0.0; tokens * side * side], 0.0);
        for stage in ["down_blocks", "up_blocks"] {
            for (block, layer) in (0..4).flat_map(|block| (0..4).map(move |layer| (block, layer))) {
                let key =
                    format!("probs.{stage}.{block}.attentions.{layer}.transformer_blocks.0.attn2");
                if !self.case.has(&key) {
                    continue;
                }
                let probs: Tensor<4> = self.case.tensor(&key, &Device::flex());
                let [_, heads, queries, keys] = probs.dims();
                if queries != side * side {
                    continue;
                }
                let values = self.case.numbers(&key);
                count += heads as f64;
                for head in 0..heads {
                    for (query, token) in
                        (0..queries).flat_map(|query| (0..tokens).map(move |token| (query, token)))
                    {
                        let at = ((sample * heads + head) * queries + query) * keys + token;
                        sum[token * queries + query] += values[at];
                    }
                }
            }
        }
        assert!(count > 0.0, "no recorded layer");
        sum.iter().map(|sum| sum / count).collect()
    }
}

fn selection(reduction: usize) -> SiteSelection {
    SiteSelection {
        reduction,
        ..SiteSelection::default()
    }
}

fn values(maps: &CallMaps) -> Vec<f64> {
    maps.maps()
        .flatten()
        .map(|&value| f64::from(value))
        .collect()
}

#[test]
fn collected_maps_are_the_means_of_the_recorded_ones_and_the_output_stays() {
    let recorded = Recorded::load();
    let plain = recorded.run(&mut NoTap);
    let (batch, keys) = (recorded.x.dims()[0], recorded.states.dims()[2]);
    assert_eq!(batch, 2);
    let selection = selection(1);
    // both samples, the second with fewer tokens
    let tokens = vec![keys, keys - 2];
    let mut collector = MapCollector::new(selection, 0..2, tokens.clone()).unwrap();
    for _call in 0..2 {
        let tapped = recorded.run(&mut collector);
        assert_close(
            "output",
            &tapped,
            &plain,
            OUTPUT_TOLERANCE,
            OUTPUT_TOLERANCE,
        );
        let maps = collector.take().unwrap();
        for (sample, (maps, &tokens)) in maps.iter().zip(&tokens).enumerate() {
            let want = recorded.mean(sample, tokens);
            let name = format!("sample {sample}");
            assert_close_slices(&name, &values(maps), &want, 0.0, MAP_TOLERANCE);
        }
    }
    // the conditional half of a guidance pair
    let mut half = MapCollector::new(selection, 1..2, vec![keys]).unwrap();
    recorded.run(&mut half);
    let maps = half.take().unwrap();
    assert_eq!(maps.len(), 1);
    let want = recorded.mean(1, keys);
    assert_close_slices("half", &values(&maps[0]), &want, 0.0, MAP_TOLERANCE);
}

#[test]
fn a_size_that_the_unet_does_not_have_and_a_prompt_that_it_does_not_read_are_errors() {
    let recorded = Recorded::load();
    let keys = recorded.states.dims()[2];
    // at half of the input's side there is attention, but in the middle only
    let mut nowhere = MapCollector::new(selection(2), 0..1, vec![keys]).unwrap();
    recorded.run(&mut nowhere);
    assert!(matches!(
        nowhere.take(),
        Err(DefenseError::NoMaps { reduction: 2 })
    ));
    let mut long = MapCollector::new(selection(1), 0..1, vec![keys + 1]).unwrap();
    recorded.run(&mut long);
    assert!(matches!(long.take(), Err(DefenseError::LongPrompt { .. })));
}

//! Images of a trigger: the same with any number of threads and whatever is drawn together, and stopped from outside.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    ops::ControlFlow,
    sync::atomic::{AtomicUsize, Ordering},
};

use burn::tensor::{Device, Tensor};
use depurate_diffusion::{
    Denoiser, DiffusionError, Pipeline,
    firing::{Firing, Prior, fire},
    noise::SeedTree,
};
use depurate_testkit::assert_close;

const COUNT: usize = 5;

fn drawn(
    threads: usize,
    batch: usize,
    firing: Firing,
    progress: &(dyn Fn(usize) -> ControlFlow<()> + Sync),
) -> Result<Tensor<4>, DiffusionError> {
    let dir = depurate_testkit::golden::root().join("unet2d/c1_attn_all/pipeline");
    let model = Pipeline::load(&dir, &Default::default(), &Device::flex()).unwrap();
    let prior = Prior {
        shift: Tensor::ones(model.sample_shape().batched(1), &model.device()) * 0.5,
        gamma: None,
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.unwrap().install(|| {
        let seed = SeedTree::new(3);
        fire(
            &model,
            firing,
            Some(&prior),
            (COUNT, batch),
            &seed,
            progress,
        )
    })
}

#[test]
fn threads_and_batches_change_no_image() {
    for firing in [Firing::Deterministic, Firing::Modified] {
        let go_on = |_| ControlFlow::Continue(());
        let alone = drawn(1, 1, firing, &go_on).unwrap();
        for (threads, batch) in [(1, COUNT), (2, COUNT), (3, 2), (8, COUNT)] {
            let together = drawn(threads, batch, firing, &go_on).unwrap();
            assert_close("images", &together, &alone, 1e-5, 1e-5);
        }
    }
}

#[test]
fn every_evaluation_is_told_and_a_stop_is_heard() {
    for threads in [1, 2] {
        let told = AtomicUsize::new(0);
        let stop_after = |most: usize| {
            told.store(0, Ordering::SeqCst);
            drawn(threads, 2, Firing::Deterministic, &|evaluations| {
                if told.fetch_add(evaluations, Ordering::SeqCst) < most {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })
        };
        assert!(stop_after(usize::MAX).is_ok());
        assert_eq!(told.load(Ordering::SeqCst), 50 * COUNT);
        assert!(matches!(stop_after(10), Err(DiffusionError::Cancelled)));
        assert!(told.load(Ordering::SeqCst) < 50 * COUNT);
    }
}

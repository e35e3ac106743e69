//! In steady state no kernel allocates: everything that it works in was kept from the call before.
#![allow(missing_docs)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use depurate_kernels::activation::{self, Activation};
use depurate_kernels::attention::{self, Saved};
use depurate_kernels::{
    ConvShape, Stride2Pad, bias_grad, conv1x1, conv3x3, conv3x3_stride2, group_norm, layer_norm,
    linear, softmax, upsample2x, vectors,
};

/// The system's allocator, counting.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `kernel` until its scratch is there, and counts the allocations of one more call. With one thread: handing work to
/// others allocates inside rayon now and then.
fn allocations(mut kernel: impl FnMut() + Send) -> usize {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    pool.expect("a thread").install(|| {
        for _ in 0..3 {
            kernel();
        }
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        kernel();
        ALLOCATIONS.load(Ordering::Relaxed) - before
    })
}

fn filled(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.618).sin()).collect()
}

/// One test, because the count is of the whole process.
#[test]
fn kernels_do_not_allocate() {
    let assert_none = |name: &str, count: usize| assert_eq!(count, 0, "{name} allocates");
    for (c_in, c_out) in [(16, 24), (3, 16), (16, 3)] {
        let s = ConvShape {
            batch: 2,
            c_in,
            c_out,
            height: 14,
            width: 14,
        };
        let (x, w, bias) = (
            filled(s.input_len()),
            filled(c_in * c_out * 9),
            filled(c_out),
        );
        let mut y = filled(2 * c_out * 196);
        let (mut gx, mut gw, mut gb) = (x.clone(), w.clone(), bias.clone());
        assert_none(
            "conv3x3",
            allocations(|| {
                conv3x3::forward(&x, &w, Some(&bias), s, &mut y);
                conv3x3::input_grad(&y, &w, s, &mut gx);
                conv3x3::weight_grad(&x, &y, s, &mut gw);
                bias_grad(&y, 2, c_out, 196, &mut gb);
            }),
        );
        let (mut half, pad) = (filled(2 * c_out * 49), Stride2Pad::Symmetric);
        assert_none(
            "conv3x3_stride2",
            allocations(|| {
                conv3x3_stride2::forward(&x, &w, Some(&bias), s, pad, &mut half);
                conv3x3_stride2::input_grad(&half, &w, s, pad, &mut gx);
                conv3x3_stride2::weight_grad(&x, &half, s, pad, &mut gw);
            }),
        );
        let w = filled(c_in * c_out);
        let mut gw = w.clone();
        assert_none(
            "conv1x1",
            allocations(|| {
                conv1x1::forward(&x, &w, Some(&bias), s, &mut y);
                conv1x1::input_grad(&y, &w, s, &mut gx);
                conv1x1::weight_grad(&x, &y, s, &mut gw);
            }),
        );
    }
    let s = attention::Shape {
        heads: 2,
        width: 20,
        queries: 70,
        keys: 30,
        scale: 0.2,
    };
    let (q, k) = (filled(2 * 20 * 70), filled(2 * 20 * 30));
    let (mut y, mut lse, mut map) = (q.clone(), filled(140), filled(2 * 70 * 30));
    let (mut gq, mut gk, mut gv, mut gmap) = (q.clone(), k.clone(), k.clone(), map.clone());
    assert_none(
        "attention",
        allocations(|| {
            attention::forward(&q, &k, &k, s, &mut y, &mut lse);
            let saved = Saved {
                q: &q,
                k: &k,
                v: &k,
                y: &y,
                lse: &lse,
            };
            attention::backward(saved, &q, s, &mut gq, &mut gk, &mut gv);
            attention::map(&q, &k, s, &mut map);
            attention::mix(&map, &k, s, &mut y);
            attention::mix_grad(&map, &k, &q, s, &mut gmap, &mut gv);
            attention::map_grad((&q, &k, &map), &gmap, s, &mut gq, &mut gk);
        }),
    );
    let (x, gamma) = (filled(2 * 8 * 100), filled(8));
    let (mut y, mut z, mut ggamma, mut gbeta) =
        (x.clone(), x.clone(), gamma.clone(), gamma.clone());
    let groups = group_norm::Shape {
        batch: 2,
        channels: 8,
        hw: 100,
        groups: 4,
        eps: 1e-5,
        silu: true,
    };
    let tokens = layer_norm::Shape {
        batch: 2,
        channels: 8,
        tokens: 100,
        eps: 1e-5,
    };
    let rows = linear::Shape {
        rows: 16,
        wide_in: 100,
        wide_out: 100,
    };
    let w = filled(100 * 100);
    let mut gw = w.clone();
    assert_none(
        "the rest",
        allocations(|| {
            group_norm::forward(&x, &gamma, &gamma, groups, &mut y);
            let to = (&mut ggamma, &mut gbeta);
            group_norm::backward(&x, &mut y, &gamma, &gamma, groups, to.0, to.1, Some(&mut z));
            layer_norm::forward(&x, &gamma, &gamma, tokens, &mut y);
            layer_norm::backward(&x, &y, &gamma, tokens, &mut z, &mut ggamma, &mut gbeta);
            linear::forward(&x, &w, None, rows, &mut y);
            linear::input_grad(&y, &w, rows, &mut z);
            linear::weight_grad(&x, &y, rows, &mut gw);
            activation::forward(&x, Activation::Gelu, &mut y);
            softmax::forward(&x, 100, &mut y);
            vectors::add(&x, &z, &mut y);
            upsample2x::forward(&x[..400], 4, 10, 10, &mut y);
        }),
    );
}

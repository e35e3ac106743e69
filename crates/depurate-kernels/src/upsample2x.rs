//! Nearest-neighbour upsampling by two in both directions.

use rayon::prelude::*;

use crate::parallel;
use crate::shape::check;

/// `[planes][h][w]` to `[planes][2h][2w]`: every pixel becomes four.
pub fn forward(x: &[f32], planes: usize, h: usize, w: usize, y: &mut [f32]) {
    check("x", x, planes * h * w);
    check("y", y, planes * h * w * 4);
    if x.is_empty() {
        return;
    }
    let least = parallel::LEAST.div_ceil(h * w);
    let planes = y
        .par_chunks_exact_mut(4 * h * w)
        .zip(x.par_chunks_exact(h * w));
    planes.with_min_len(least).for_each(|(y, x)| {
        for (pair, row) in y.chunks_exact_mut(4 * w).zip(x.chunks_exact(w)) {
            let (first, second) = pair.split_at_mut(2 * w);
            for (to, from) in first.chunks_exact_mut(2).zip(row) {
                to.fill(*from);
            }
            second.copy_from_slice(first);
        }
    });
}

/// The gradient: every pixel sums its four.
pub fn backward(gy: &[f32], planes: usize, h: usize, w: usize, gx: &mut [f32]) {
    check("gy", gy, planes * h * w * 4);
    check("gx", gx, planes * h * w);
    if gx.is_empty() {
        return;
    }
    let least = parallel::LEAST.div_ceil(h * w);
    let planes = gx
        .par_chunks_exact_mut(h * w)
        .zip(gy.par_chunks_exact(4 * h * w));
    planes.with_min_len(least).for_each(|(gx, gy)| {
        for (row, pair) in gx.chunks_exact_mut(w).zip(gy.chunks_exact(4 * w)) {
            let (first, second) = pair.split_at(2 * w);
            let above = first.chunks_exact(2);
            let below = second.chunks_exact(2);
            for ((to, a), b) in row.iter_mut().zip(above).zip(below) {
                *to = (a[0] + a[1]) + (b[0] + b[1]);
            }
        }
    });
}

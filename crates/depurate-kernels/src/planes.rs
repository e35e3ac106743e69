//! Channels of two tensors put together, and taken apart again.

use rayon::prelude::*;

use crate::shape::check;

/// Per image, the elements of `a` and then those of `b`.
pub fn join(a: &[f32], b: &[f32], batch: usize, y: &mut [f32]) {
    check("y", y, a.len() + b.len());
    let (first, second) = parts(a, b, batch);
    y.par_chunks_exact_mut(first + second)
        .zip(a.par_chunks_exact(first))
        .zip(b.par_chunks_exact(second))
        .for_each(|((y, a), b)| {
            y[..first].copy_from_slice(a);
            y[first..].copy_from_slice(b);
        });
}

/// The inverse of [`join`].
pub fn split(y: &[f32], batch: usize, a: &mut [f32], b: &mut [f32]) {
    check("y", y, a.len() + b.len());
    let (first, second) = parts(a, b, batch);
    y.par_chunks_exact(first + second)
        .zip(a.par_chunks_exact_mut(first))
        .zip(b.par_chunks_exact_mut(second))
        .for_each(|((y, a), b)| {
            a.copy_from_slice(&y[..first]);
            b.copy_from_slice(&y[first..]);
        });
}

/// Elements of an image in `a` and in `b`.
#[track_caller]
fn parts(a: &[f32], b: &[f32], batch: usize) -> (usize, usize) {
    assert!(
        batch > 0
            && a.len().is_multiple_of(batch)
            && b.len().is_multiple_of(batch)
            && !a.is_empty()
            && !b.is_empty(),
        "{} and {} elements are not {batch} images",
        a.len(),
        b.len()
    );
    (a.len() / batch, b.len() / batch)
}

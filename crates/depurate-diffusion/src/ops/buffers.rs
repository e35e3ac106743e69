//! Buffers that operations hand to each other: what one operation is done with, the next one fills.
//!
//! Without them every output is a fresh allocation that the system first fills with zeros, page by page, on one thread: about
//! a seventh of a training step on two threads. Kernels write every element of their outputs, so what a buffer held before
//! does not matter.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use burn_flex::FlexTensor;

/// Elements below which an allocation is cheap.
const LEAST: usize = 4096;
/// Buffers that may wait for use, and elements of all of them; those that have waited longest are given back. A picture of
/// 512 x 512 pixels with 128 channels has 33 million elements: sixteen such buffers would be half of Stable Diffusion's weights.
const MOST: usize = 16;
const MOST_ELEMENTS: usize = 64 << 20;

static WAITING: Mutex<VecDeque<Vec<f32>>> = Mutex::new(VecDeque::new());

/// A vector of `n` arbitrary values, for a kernel to fill.
pub(super) fn fresh(n: usize) -> Vec<f32> {
    take(n).unwrap_or_else(|| vec![0.0; n])
}

/// The smallest buffer that is large enough, if it is not much too large.
fn take(n: usize) -> Option<Vec<f32>> {
    if n < LEAST {
        return None;
    }
    let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    let fits = |buffer: &Vec<f32>| (n..=n + n / 4).contains(&buffer.capacity());
    let (at, _) = waiting
        .iter()
        .enumerate()
        .filter(|(_, buffer)| fits(buffer))
        .min_by_key(|(_, buffer)| buffer.capacity())?;
    let mut buffer = waiting.remove(at)?;
    drop(waiting);
    buffer.resize(n, 0.0);
    Some(buffer)
}

/// Keeps the buffers of those tensors that nobody else has.
pub(super) fn recycle<const N: usize>(tensors: [FlexTensor; N]) {
    for tensor in tensors {
        let whole = size_of::<f32>() * tensor.layout().num_elements();
        if !tensor.is_unique() || whole < size_of::<f32>() * LEAST || tensor.bytes().len() != whole
        {
            continue;
        }
        let Ok(buffer) = tensor.into_data().try_into_vec::<f32>() else {
            continue;
        };
        let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push_back(buffer);
        let mut elements: usize = waiting.iter().map(Vec::capacity).sum();
        while waiting.len() > MOST || elements > MOST_ELEMENTS {
            let Some(oldest) = waiting.pop_front() else {
                break;
            };
            elements -= oldest.capacity();
        }
    }
}

/// Gives back all buffers that wait for use.
pub(crate) fn release() {
    WAITING
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clear();
}

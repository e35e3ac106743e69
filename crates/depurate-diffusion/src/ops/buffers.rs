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
/// Buffers that may wait for use; the one that has waited longest is given back.
const MOST: usize = 16;

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
        if waiting.len() > MOST {
            waiting.pop_front();
        }
    }
}

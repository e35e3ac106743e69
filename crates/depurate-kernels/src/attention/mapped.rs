//! Attention in two steps with the map `P [heads][keys][queries]` between them, for whoever looks at it: eq. (1) and (2)
//! make it, eq. (3) uses it. Each has its own gradient, so that a map can be given one.

use super::{KEYS, QUERIES, Shape, mixed, pack, products, unpack};
use crate::isa::{self, Kernel};
use crate::parallel::{self, Shared};
use crate::scratch;
use crate::shape::check;
use crate::simd::{Simd, exp};

/// Eq. (1) and (2): the map of `q` on `k`.
pub fn map(q: &[f32], k: &[f32], s: Shape, map: &mut [f32]) {
    s.check_operands(q, k, k, q);
    check("map", map, s.map_len());
    let isa = isa::current();
    let out = Shared::write(map);
    parallel::for_each(s.heads * s.blocks(), |task| {
        let (head, first, count) = s.block(task);
        isa.run(Scores {
            q,
            k,
            s,
            head,
            first,
            count,
            map: out,
        });
    });
}

/// Eq. (3): values mixed by a map.
pub fn mix(map: &[f32], v: &[f32], s: Shape, y: &mut [f32]) {
    check("map", map, s.map_len());
    s.check_operands(y, v, v, y);
    let isa = isa::current();
    let out = Shared::write(y);
    parallel::for_each(s.heads * s.blocks(), |task| {
        let (head, first, count) = s.block(task);
        isa.run(Mix {
            map,
            v,
            s,
            head,
            first,
            count,
            y: out,
        });
    });
}

/// The map of some queries of one head. Tasks write disjoint columns of `map`.
struct Scores<'a> {
    q: &'a [f32],
    k: &'a [f32],
    s: Shape,
    head: usize,
    first: usize,
    count: usize,
    map: Shared,
}

impl Kernel for Scores<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (s, count) = (self.s, self.count);
        let lengths = [s.width * QUERIES, s.width * KEYS, s.keys * QUERIES];
        let mut scratch = scratch::take(lengths);
        let [q, k, map] = scratch.slices();
        // SAFETY: the head, its queries and its keys exist in the operands; the scratch holds a block of QUERIES with all
        // keys; the columns of map are this task's.
        unsafe {
            let from = self
                .q
                .as_ptr()
                .add(self.head * s.width * s.queries + self.first);
            let to = q.as_mut_ptr();
            pack::<S>(from, s.queries, s.width, count, s.scale, to, QUERIES);
            let of_keys = self.head * s.width * s.keys;
            for first in (0..s.keys).step_by(KEYS) {
                let n = KEYS.min(s.keys - first);
                let from = self.k.as_ptr().add(of_keys + first);
                let to = map.as_mut_ptr().add(first * QUERIES);
                products::<S>(from, s, n, k.as_mut_ptr(), q.as_ptr(), count, to); // eq. (1)
            }
            for i in (0..count).step_by(S::LANES) {
                softmax_of_columns::<S>(map.as_mut_ptr().add(i), s.keys); // eq. (2)
            }
            let to = self.map.at(s.of_map(self.head, self.first));
            unpack::<S>(map.as_ptr(), 1.0, s.keys, count, to, s.queries);
        }
    }
}

/// Softmax down a vector of columns of `rows` rows, QUERIES apart.
///
/// # Safety
/// As for [`Simd`]; the rows exist.
#[inline(always)]
unsafe fn softmax_of_columns<S: Simd>(map: *mut f32, rows: usize) {
    // SAFETY: as the caller promises.
    unsafe {
        let mut most = S::splat(f32::NEG_INFINITY);
        for row in 0..rows {
            most = S::max(S::load(map.add(row * QUERIES)), most);
        }
        let mut total = S::splat(0.0);
        for row in 0..rows {
            let at = map.add(row * QUERIES);
            let e = exp::<S>(S::sub(S::load(at), most));
            total = S::add(total, e);
            S::store(at, e);
        }
        let share = S::div(S::splat(1.0), total);
        for row in 0..rows {
            let at = map.add(row * QUERIES);
            S::store(at, S::mul(S::load(at), share));
        }
    }
}

/// The output for some queries of one head. Tasks write disjoint columns of `y`.
struct Mix<'a> {
    map: &'a [f32],
    v: &'a [f32],
    s: Shape,
    head: usize,
    first: usize,
    count: usize,
    y: Shared,
}

impl Kernel for Mix<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (s, count) = (self.s, self.count);
        let mut scratch = scratch::take([s.keys * QUERIES, s.width * QUERIES]);
        let [map, sums] = scratch.slices();
        sums.fill(0.0);
        // SAFETY: the head, its queries and its keys exist in the operands; the scratch holds a block of QUERIES with all
        // keys; the columns of y are this task's.
        unsafe {
            let from = self.map.as_ptr().add(s.of_map(self.head, self.first));
            pack::<S>(
                from,
                s.queries,
                s.keys,
                count,
                1.0,
                map.as_mut_ptr(),
                QUERIES,
            );
            let values = self.v.as_ptr().add(self.head * s.width * s.keys);
            let (map, to) = (map.as_ptr(), sums.as_mut_ptr());
            S::call(mixed::<S>(values, s, s.keys, count, map, to)); // eq. (3)
            let at = self.head * s.width * s.queries + self.first;
            unpack::<S>(sums.as_ptr(), 1.0, s.width, count, self.y.at(at), s.queries);
        }
    }
}

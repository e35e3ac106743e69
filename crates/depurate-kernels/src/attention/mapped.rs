//! Attention that gives its map, for whoever looks at it: eq. (1) to (3) with `P [heads][keys][queries]` in memory.
//!
//! Backward, the map's own gradient `gP` joins the output's:
//!
//! ```text
//! gV[c][k] = Σ_q gy[c][q] P[k][q]
//! h[k][q]  = Σ_c v[c][k] gy[c][q] + gP[k][q]
//! gS[k][q] = P[k][q] (h[k][q] - Σ_j P[j][q] h[j][q])
//! ```

use super::backward::{Rows, gathered, rows_of};
use super::{KEYS, QUERIES, Shape, mixed, pack, products};
use crate::isa::{self, Kernel};
use crate::parallel::{self, Shared};
use crate::scratch;
use crate::shape::check;
use crate::simd::{Simd, exp};
use crate::transpose::to_planes;

/// Eq. (3) into `y` and eq. (2) into `map [heads][keys][queries]`.
pub fn forward_with_map(q: &[f32], k: &[f32], v: &[f32], s: Shape, y: &mut [f32], map: &mut [f32]) {
    s.check_operands(q, k, v, y);
    check("map", map, s.map_len());
    let isa = isa::current();
    let blocks = s.queries.div_ceil(QUERIES);
    let (y, map) = (Shared::write(y), Shared::write(map));
    parallel::for_each(s.heads * blocks, |task| {
        let (head, first) = (task / blocks, task % blocks * QUERIES);
        let count = QUERIES.min(s.queries - first);
        isa.run(Block {
            q,
            k,
            v,
            s,
            head,
            first,
            count,
            y,
            map,
        });
    });
}

/// Some queries of one head. Tasks write disjoint columns of `y` and `map`.
struct Block<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    s: Shape,
    head: usize,
    first: usize,
    count: usize,
    y: Shared,
    map: Shared,
}

impl Kernel for Block<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (s, count) = (self.s, self.count);
        let mut scratch = scratch::take([
            s.width * QUERIES,
            s.width * KEYS,
            s.keys * QUERIES,
            s.width * QUERIES,
        ]);
        let [q, k, map, sums] = scratch.slices();
        sums.fill(0.0);
        // SAFETY: the head, its queries and its keys exist in the operands; the scratch holds a block of QUERIES with all
        // keys; the columns of y and map are this task's.
        unsafe {
            let at = self.head * s.width * s.queries + self.first;
            let from = self.q.as_ptr().add(at);
            pack::<S>(
                from,
                s.queries,
                s.width,
                count,
                s.scale,
                q.as_mut_ptr(),
                QUERIES,
            );
            let of_keys = self.head * s.width * s.keys;
            for first in (0..s.keys).step_by(KEYS) {
                let n = KEYS.min(s.keys - first);
                let from = self.k.as_ptr().add(of_keys + first);
                pack::<S>(from, s.keys, s.width, n, 1.0, k.as_mut_ptr(), KEYS);
                let to = map.as_mut_ptr().add(first * QUERIES);
                S::call(products::<S>(k.as_ptr(), q.as_ptr(), s.width, n, count, to)); // eq. (1)
            }
            let of_map = self.head * s.keys * s.queries + self.first;
            for i in (0..count).step_by(S::LANES) {
                softmax_of_columns::<S>(map.as_mut_ptr().add(i), s.keys); // eq. (2)
                let lanes = S::LANES.min(count - i);
                for row in 0..s.keys {
                    let p = S::load(map.as_ptr().add(row * QUERIES + i));
                    S::store_partial(self.map.at(of_map + row * s.queries + i), lanes, p);
                }
            }
            let values = self.v.as_ptr().add(of_keys);
            S::call(mixed::<S>(
                values,
                s,
                s.keys,
                count,
                map.as_ptr(),
                sums.as_mut_ptr(),
            )); // eq. (3)
            for i in (0..count).step_by(S::LANES) {
                let lanes = S::LANES.min(count - i);
                for c in 0..s.width {
                    let y = S::load(sums.as_ptr().add(c * QUERIES + i));
                    S::store_partial(self.y.at(at + c * s.queries + i), lanes, y);
                }
            }
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

/// What the forward pass was given, and its map.
#[derive(Clone, Copy, Debug)]
pub struct SavedWithMap<'a> {
    /// Queries.
    pub q: &'a [f32],
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
    /// The map.
    pub map: &'a [f32],
}

/// The gradients with respect to `q`, `k` and `v`, given those with respect to `y` and to the map. Heads run in parallel.
pub fn backward_with_map(
    saved: SavedWithMap<'_>,
    (gy, gmap): (&[f32], &[f32]),
    s: Shape,
    gq: &mut [f32],
    gk: &mut [f32],
    gv: &mut [f32],
) {
    s.check_operands(saved.q, saved.k, saved.v, gy);
    check("map", saved.map, s.map_len());
    check("gmap", gmap, s.map_len());
    s.check_operands(gq, gk, gv, gq);
    let isa = isa::current();
    let (gq, gk, gv) = (Shared::write(gq), Shared::write(gk), Shared::write(gv));
    parallel::for_each(s.heads, |head| {
        isa.run(Head {
            saved,
            gy,
            gmap,
            s,
            head,
            gq,
            gk,
            gv,
        });
    });
}

/// One head. Tasks write disjoint heads.
struct Head<'a> {
    saved: SavedWithMap<'a>,
    gy: &'a [f32],
    gmap: &'a [f32],
    s: Shape,
    head: usize,
    gq: Shared,
    gk: Shared,
    gv: Shared,
}

impl Kernel for Head<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (s, saved) = (self.s, self.saved);
        let padded = s.width.next_multiple_of(S::LANES);
        let mut scratch = scratch::take([
            s.width * QUERIES,
            padded * QUERIES,
            padded * QUERIES,
            s.width * KEYS,
            s.keys * QUERIES,
            s.keys * QUERIES,
            padded * s.keys,
            padded * s.keys,
            s.width * QUERIES,
        ]);
        let [planes, q_rows, gy_rows, v, map, gmap, gk, gv, gq] = scratch.slices();
        gk.fill(0.0);
        gv.fill(0.0);
        let (of_queries, of_keys) = (
            self.head * s.width * s.queries,
            self.head * s.width * s.keys,
        );
        for first in (0..s.queries).step_by(QUERIES) {
            let count = QUERIES.min(s.queries - first);
            gq.fill(0.0);
            // SAFETY: the head, its queries and its keys exist in the operands; the scratch holds a block of QUERIES with all
            // keys, and all keys of a head where the sums over queries go; the gradients' head is this task's.
            unsafe {
                let at = of_queries + first;
                let rows = Rows { s, count, padded };
                let to = planes.as_mut_ptr();
                rows_of::<S>(
                    saved.q.as_ptr().add(at),
                    s.scale,
                    rows,
                    to,
                    q_rows.as_mut_ptr(),
                );
                rows_of::<S>(
                    self.gy.as_ptr().add(at),
                    1.0,
                    rows,
                    to,
                    gy_rows.as_mut_ptr(),
                );
                for first_key in (0..s.keys).step_by(KEYS) {
                    let n = KEYS.min(s.keys - first_key);
                    let from = saved.v.as_ptr().add(of_keys + first_key);
                    pack::<S>(from, s.keys, s.width, n, 1.0, v.as_mut_ptr(), KEYS);
                    let to = gmap.as_mut_ptr().add(first_key * QUERIES);
                    S::call(products::<S>(
                        v.as_ptr(),
                        planes.as_ptr(),
                        s.width,
                        n,
                        count,
                        to,
                    ));
                }
                self.to_scores::<S>(first, count, map.as_mut_ptr(), gmap.as_mut_ptr());
                let (keys, to) = (s.keys, gv.as_mut_ptr());
                S::call(gathered::<S>(
                    map.as_ptr(),
                    gy_rows.as_ptr(),
                    padded,
                    keys,
                    count,
                    to,
                ));
                let to = gk.as_mut_ptr();
                S::call(gathered::<S>(
                    gmap.as_ptr(),
                    q_rows.as_ptr(),
                    padded,
                    keys,
                    count,
                    to,
                ));
                let from = saved.k.as_ptr().add(of_keys);
                S::call(mixed::<S>(
                    from,
                    s,
                    keys,
                    count,
                    gmap.as_ptr(),
                    gq.as_mut_ptr(),
                ));
                for c in 0..s.width {
                    for i in (0..count).step_by(S::LANES) {
                        let g = S::load(gq.as_ptr().add(c * QUERIES + i));
                        let to = self.gq.at(at + c * s.queries + i);
                        S::store_partial(to, S::LANES.min(count - i), S::mul(g, S::splat(s.scale)));
                    }
                }
            }
        }
        // SAFETY: as above.
        unsafe {
            for (from, to) in [(gk, self.gk), (gv, self.gv)] {
                to_planes::<S>(
                    from.as_ptr(),
                    padded,
                    s.width,
                    s.keys,
                    to.at(of_keys),
                    s.keys,
                );
            }
        }
    }
}

impl Head<'_> {
    /// Loads a block of the map and turns `v gy` in `gmap` into `gS`.
    #[inline(always)]
    unsafe fn to_scores<S: Simd>(&self, first: usize, count: usize, map: *mut f32, gmap: *mut f32) {
        let s = self.s;
        let of_map = self.head * s.keys * s.queries + first;
        // SAFETY: as in `run`.
        unsafe {
            for i in (0..count).step_by(S::LANES) {
                let (lanes, zero) = (S::LANES.min(count - i), S::splat(0.0));
                let mut dot = zero;
                for row in 0..s.keys {
                    let from = of_map + row * s.queries + i;
                    let p = S::load_partial(self.saved.map.as_ptr().add(from), lanes, zero);
                    let g = S::load_partial(self.gmap.as_ptr().add(from), lanes, zero);
                    let at = row * QUERIES + i;
                    let h = S::add(S::load(gmap.add(at)), g);
                    dot = S::fma(p, h, dot);
                    S::store(map.add(at), p);
                    S::store(gmap.add(at), h);
                }
                for row in 0..s.keys {
                    let at = row * QUERIES + i;
                    let h = S::sub(S::load(gmap.add(at)), dot);
                    S::store(gmap.add(at), S::mul(S::load(map.add(at)), h));
                }
            }
        }
    }
}

//! Four-lane arrays: works everywhere, and stands in for four-lane hardware in tests.

use super::Simd;
use crate::isa::Kernel;

#[derive(Clone, Copy)]
pub(crate) struct Portable;

type V = [f32; 4];

macro_rules! lanewise {
    ($name:ident, $a:ident, $b:ident, $e:expr) => {
        #[inline(always)]
        unsafe fn $name(a: V, b: V) -> V {
            let mut r = [0.0; 4];
            for i in 0..4 {
                let ($a, $b) = (a[i], b[i]);
                r[i] = $e;
            }
            r
        }
    };
}

impl Simd for Portable {
    const LANES: usize = 4;
    const PANEL: usize = 2;
    type V = V;
    type Block = [V; 4];

    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Out {
        crate::isa::run_portable(kernel)
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> V {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> V {
        // SAFETY: the caller gives four readable lanes.
        unsafe { p.cast::<V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: V) {
        // SAFETY: the caller gives four writable lanes.
        unsafe { p.cast::<V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_partial(p: *const f32, n: usize, fill: V) -> V {
        let mut r = fill;
        for (i, lane) in r.iter_mut().enumerate().take(n) {
            // SAFETY: the caller gives n readable lanes.
            *lane = unsafe { *p.add(i) };
        }
        r
    }
    #[inline(always)]
    unsafe fn store_partial(p: *mut f32, n: usize, v: V) {
        for (i, lane) in v.iter().enumerate().take(n) {
            // SAFETY: the caller gives n writable lanes.
            unsafe { *p.add(i) = *lane };
        }
    }
    lanewise!(add, a, b, a + b);
    lanewise!(sub, a, b, a - b);
    lanewise!(mul, a, b, a * b);
    lanewise!(div, a, b, a / b);
    lanewise!(max, a, b, if a > b { a } else { b });
    lanewise!(min, a, b, if a < b { a } else { b });
    #[inline(always)]
    unsafe fn sqrt(a: V) -> V {
        a.map(f32::sqrt)
    }
    #[inline(always)]
    unsafe fn fma(a: V, b: V, c: V) -> V {
        let mut r = c;
        for i in 0..4 {
            // not `mul_add`: without the instruction it is a slow library call
            r[i] += a[i] * b[i];
        }
        r
    }
    #[inline(always)]
    unsafe fn round(a: V) -> V {
        let mut r = a;
        for x in &mut r {
            // adding and taking off 1.5 * 2^23 drops the fraction of |x| < 2^22
            *x = (*x + 12_582_912.0) - 12_582_912.0;
        }
        r
    }
    #[inline(always)]
    unsafe fn pow2(k: V) -> V {
        let mut r = k;
        for x in &mut r {
            *x = f32::from_bits(((*x as i32 + 127) as u32) << 23);
        }
        r
    }
    #[inline(always)]
    unsafe fn select_lt(a: V, b: V, yes: V, no: V) -> V {
        let mut r = no;
        for i in 0..4 {
            if a[i] < b[i] {
                r[i] = yes[i];
            }
        }
        r
    }
    #[inline(always)]
    unsafe fn zero_block() -> [V; 4] {
        [[0.0; 4]; 4]
    }
    #[inline(always)]
    unsafe fn transpose(block: &mut [V; 4]) {
        let b = *block;
        for i in 0..4 {
            for j in 0..4 {
                block[i][j] = b[j][i];
            }
        }
    }
}

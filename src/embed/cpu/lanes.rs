//! Lanes: one register of f32 numbers, and the instruction sets that there are for it.
//!
//! The invariant: an [`Isa`] is only made where the processor has its instructions, so code that is chosen by one may use them.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// A register of numbers.
///
/// # Safety
/// The functions may only run where the processor has the register's instructions; what `load` and `store` are given has to hold
/// `WIDTH` numbers.
pub(super) trait Lanes: Copy {
    const WIDTH: usize;
    /// Rows of the largest tile of two registers a row that stays in the register file.
    const ROWS: usize;
    /// Whether multiply-add is one instruction (where it is none, it would be a call).
    const FUSED: bool;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// `self * by + plus`
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self;
}

/// An instruction set that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Isa(pub(super) Known);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What every processor of the target has.
    Common,
}

impl Isa {
    /// All that this processor has, the widest first.
    pub fn available() -> Vec<Isa> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                found.push(Isa(Known::Avx512));
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                found.push(Isa(Known::Avx2));
            }
        }
        found.push(Isa(Known::Common));
        found
    }

    /// Columns of a panel: two registers.
    pub fn panel(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Known::Avx512 => 2 * <__m512 as Lanes>::WIDTH,
            #[cfg(target_arch = "x86_64")]
            Known::Avx2 => 2 * <__m256 as Lanes>::WIDTH,
            Known::Common => 2 * <[f32; 4] as Lanes>::WIDTH,
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Lanes for __m512 {
    const WIDTH: usize = 16;
    const ROWS: usize = 12;
    const FUSED: bool = true;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
        unsafe { _mm512_fmadd_ps(self, by, plus) }
    }
}

#[cfg(target_arch = "x86_64")]
impl Lanes for __m256 {
    const WIDTH: usize = 8;
    const ROWS: usize = 6;
    const FUSED: bool = true;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
        unsafe { _mm256_fmadd_ps(self, by, plus) }
    }
}

impl Lanes for [f32; 4] {
    const WIDTH: usize = 4;
    const ROWS: usize = 6;
    const FUSED: bool = cfg!(target_arch = "aarch64");

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        [value; 4]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { from.cast::<[f32; 4]>().read() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { to.cast::<[f32; 4]>().write(self) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
        let mut sum = plus;
        for n in 0..4 {
            sum[n] = if Self::FUSED { self[n].mul_add(by[n], plus[n]) } else { self[n] * by[n] + plus[n] };
        }
        sum
    }
}

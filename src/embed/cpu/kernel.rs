//! Kernels: what a layer does to rows of numbers, each written once over lanes and compiled for every instruction set.
//!
//! The invariant: a row of an output depends on that row of the input alone, whatever rows are computed beside it.
//! A kernel never allocates and never starts a thread.
#![allow(unsafe_code)]

use super::lanes::{Isa, Known, Lanes};

/// Bytes of a cache line.
const LINE: usize = 64;

/// A matrix of `depth` rows and `columns` columns, to be multiplied from the right, with a bias: its columns lie in panels as wide as a
/// tile, one panel after the other, so that a product reads it from front to back.
pub(super) struct Packed {
    /// After the first few, which see to it that the panels begin where a cache line does: no load then crosses one.
    numbers: Vec<f32>,
    aligned: usize,
    /// As long as all panels are wide.
    bias: Vec<f32>,
    depth: usize,
    columns: usize,
    isa: Isa,
}

impl Packed {
    pub fn new(isa: Isa) -> Packed {
        Packed { numbers: Vec::new(), aligned: 0, bias: Vec::new(), depth: 0, columns: 0, isa }
    }

    /// Takes another matrix: `at(row, column)` gives its numbers.
    pub fn fill(&mut self, depth: usize, columns: usize, at: impl Fn(usize, usize) -> f32) {
        let width = self.isa.panel();
        let panels = columns.div_ceil(width);
        (self.depth, self.columns) = (depth, columns);
        self.bias.clear();
        self.bias.resize(panels * width, 0.0);
        self.numbers.clear();
        self.numbers.reserve(panels * width * depth + LINE / size_of::<f32>());
        self.aligned = self.numbers.as_ptr().align_offset(LINE);
        self.numbers.resize(self.aligned, 0.0);
        for first in (0..columns).step_by(width) {
            let valid = width.min(columns - first);
            for row in 0..depth {
                self.numbers.extend((first..first + valid).map(|column| at(row, column)));
                self.numbers.resize(self.numbers.len() + width - valid, 0.0);
            }
        }
    }

    pub fn set_bias(&mut self, bias: &[f32]) {
        self.bias[..self.columns].copy_from_slice(bias);
    }

    fn panels(&self) -> &[f32] {
        &self.numbers[self.aligned..]
    }

    pub fn columns(&self) -> usize {
        self.columns
    }
}

/// Declares a kernel that runs the generic function of the same name for the lanes of an instruction set.
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident($($argument:ident: $type:ty),*)) => {
        $(#[$doc])*
        pub(super) fn $name(isa: Isa, $($argument: $type),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f")]
            fn avx512($($argument: $type),*) {
                generic::$name::<std::arch::x86_64::__m512>($($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($argument: $type),*) {
                generic::$name::<std::arch::x86_64::__m256>($($argument),*)
            }
            match isa.0 {
                // SAFETY: an Isa is only made where the processor has its instructions.
                #[cfg(target_arch = "x86_64")]
                Known::Avx512 => unsafe { avx512($($argument),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Known::Avx2 => unsafe { avx2($($argument),*) },
                Known::Common => generic::$name::<[f32; 4]>($($argument),*),
            }
        }
    };
}

kernel! {
    /// `out = x * matrix + bias`, for `rows` rows; a row of `x` begins every `x_stride` numbers, one of `out` every `out_stride`.
    product(rows: usize, x: &[f32], x_stride: usize, matrix: &Packed, out: &mut [f32], out_stride: usize)
}
kernel! {
    /// GELU with the error function, in place.
    gelu(x: &mut [f32])
}
kernel! {
    /// GELU by its approximation with the hyperbolic tangent, in place.
    gelu_tanh(x: &mut [f32])
}
kernel! {
    /// The softmax of each row of so many columns, in place.
    softmax(x: &mut [f32], columns: usize)
}
kernel! {
    /// `x = norm(x + y) * weight + bias`, row by row.
    add_norm(x: &mut [f32], y: &[f32], weight: &[f32], bias: &[f32], epsilon: f32)
}

mod generic {
    use super::{Lanes, Packed};

    /// Rows of a panel that are multiplied before the next ones: with the rows of `x` they fit into a first-level cache.
    const BLOCK: usize = 128;
    const MAX_ROWS: usize = 12;
    const MAX_PANEL: usize = 32;

    /// Partial sums of a row's sum: enough for the widest register, and the same for each instruction set.
    const PARTS: usize = 16;

    #[inline(always)]
    pub fn product<L: Lanes>(
        rows: usize,
        x: &[f32],
        x_stride: usize,
        matrix: &Packed,
        out: &mut [f32],
        out_stride: usize,
    ) {
        if rows == 0 || matrix.columns == 0 {
            return;
        }
        let (depth, width) = (matrix.depth, 2 * L::WIDTH);
        assert_eq!(width, matrix.isa.panel(), "the matrix is packed for other lanes");
        assert!((rows - 1) * x_stride + depth <= x.len(), "a row is missing");
        assert!((rows - 1) * out_stride + matrix.columns <= out.len(), "there is no place for a row");
        let mut edge = [0.0; MAX_ROWS * MAX_PANEL];
        let panels = matrix.panels().chunks_exact(depth * width).zip(matrix.bias.chunks_exact(width));
        for (n, (panel, bias)) in panels.enumerate() {
            let column = n * width;
            let valid = width.min(matrix.columns - column);
            for (n, block) in panel.chunks(BLOCK * width).enumerate() {
                let first = n * BLOCK;
                let mut row = 0;
                while row < rows {
                    let tile = match rows - row {
                        left if left >= L::ROWS => L::ROWS,
                        left if left >= 6 => 6,
                        left if left >= 4 => 4,
                        left => left,
                    };
                    let place = row * out_stride + column;
                    if valid < width && first > 0 {
                        for r in 0..tile {
                            edge[r * width..][..valid].copy_from_slice(&out[place + r * out_stride..][..valid]);
                        }
                    }
                    // SAFETY: the asserts above; a block is whole rows of `width`, and `edge` holds the largest tile.
                    unsafe {
                        let x = Rows { at: x.as_ptr().add(row * x_stride + first), stride: x_stride };
                        let out = match valid < width {
                            true => Rows { at: edge.as_mut_ptr(), stride: width },
                            false => Rows { at: out.as_mut_ptr().add(place), stride: out_stride },
                        };
                        let start = match first {
                            0 => Rows { at: bias.as_ptr(), stride: 0 },
                            _ => Rows { at: out.at.cast_const(), stride: out.stride },
                        };
                        match tile {
                            12 if L::ROWS == 12 => multiply::<L, 12>(x, block, start, out),
                            6 => multiply::<L, 6>(x, block, start, out),
                            4 => multiply::<L, 4>(x, block, start, out),
                            3 => multiply::<L, 3>(x, block, start, out),
                            2 => multiply::<L, 2>(x, block, start, out),
                            _ => multiply::<L, 1>(x, block, start, out),
                        }
                    }
                    if valid < width {
                        for r in 0..tile {
                            out[place + r * out_stride..][..valid].copy_from_slice(&edge[r * width..][..valid]);
                        }
                    }
                    row += tile;
                }
            }
        }
    }

    /// Where rows of numbers begin, and how far they are apart.
    #[derive(Clone, Copy)]
    struct Rows<P> {
        at: P,
        stride: usize,
    }

    /// One tile, as wide as a panel: `out = start + x * block`, for `R` rows.
    ///
    /// # Safety
    /// `block` is rows of two registers; `x` has as many numbers in each of its `R` rows as it has rows; `start` and `out` have two registers in
    /// each.
    #[inline(always)]
    unsafe fn multiply<L: Lanes, const R: usize>(
        x: Rows<*const f32>,
        block: &[f32],
        start: Rows<*const f32>,
        out: Rows<*mut f32>,
    ) {
        unsafe {
            let mut sums = [[L::splat(0.0); 2]; R];
            for (r, sum) in sums.iter_mut().enumerate() {
                let start = start.at.add(r * start.stride);
                *sum = [L::load(start), L::load(start.add(L::WIDTH))];
            }
            for k in 0..block.len() / (2 * L::WIDTH) {
                let row = block.as_ptr().add(k * 2 * L::WIDTH);
                let (left, right) = (L::load(row), L::load(row.add(L::WIDTH)));
                for (r, sum) in sums.iter_mut().enumerate() {
                    let number = L::splat(*x.at.add(r * x.stride + k));
                    sum[0] = number.mul_add(left, sum[0]);
                    sum[1] = number.mul_add(right, sum[1]);
                }
            }
            for (r, sum) in sums.into_iter().enumerate() {
                let out = out.at.add(r * out.stride);
                sum[0].store(out);
                sum[1].store(out.add(L::WIDTH));
            }
        }
    }

    #[inline(always)]
    fn mul_add<L: Lanes>(a: f32, b: f32, c: f32) -> f32 {
        if L::FUSED { a.mul_add(b, c) } else { a * b + c }
    }

    #[inline(always)]
    fn polynomial<L: Lanes, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
        let mut sum = coefficients[N - 1];
        for n in (0..N - 1).rev() {
            sum = mul_add::<L>(sum, x, coefficients[n]);
        }
        sum
    }

    /// x * Phi(x). Phi(x) - 1/2 is x times a quotient of polynomials of x^2, fitted for |x| <= 5.5 so that the product errs by 2e-8 at most: less
    /// than f32 rounds by. Beyond, Phi is 0 or 1 to the last bit that counts.
    #[inline(always)]
    pub fn gelu<L: Lanes>(x: &mut [f32]) {
        const P: [f32; 6] = [3.989_42e-1, 3.514_262_3e-2, 4.761_633e-3, 1.828_605_4e-4, 6.530_698e-6, 2.221_540_4e-8];
        const Q: [f32; 6] = [1.0, 2.547_530_8e-1, 2.939_885_8e-2, 1.962_449_6e-3, 7.861_068e-5, 1.195_379_1e-6];
        for x in x {
            let inner = x.clamp(-5.5, 5.5);
            let square = inner * inner;
            let above_half = inner * polynomial::<L, 6>(square, P) / polynomial::<L, 6>(square, Q);
            *x *= 0.5 + above_half;
        }
    }

    #[inline(always)]
    pub fn gelu_tanh<L: Lanes>(x: &mut [f32]) {
        for x in x {
            // (1 + tanh z) / 2 = 1 / (1 + e^-2z)
            let z = 0.797_884_6 * mul_add::<L>(0.044_715 * *x * *x, *x, *x);
            *x /= 1.0 + exp::<L>(-2.0 * z);
        }
    }

    /// e^x, for x from -87 to 87 (it is that of the nearer end beyond), to about one unit in the last place.
    #[inline(always)]
    fn exp<L: Lanes>(x: f32) -> f32 {
        /// Adding it leaves a number rounded to whole ones in the low bits.
        const WHOLE: f32 = 12_582_912.0;
        const POWERS: [f32; 7] =
            [1.0, 6.931_472e-1, 2.402_265e-1, 5.550_327e-2, 9.618_026e-3, 1.340_044_2e-3, 1.546_974_1e-4];
        let x = x.clamp(-87.0, 87.0);
        let shifted = mul_add::<L>(x, std::f32::consts::LOG2_E, WHOLE);
        let whole = shifted - WHOLE;
        // x/ln2 less its whole part, with the part of 1/ln2 that an f32 does not hold.
        let part = mul_add::<L>(x, 1.925_963e-8, mul_add::<L>(x, std::f32::consts::LOG2_E, -whole));
        f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000)) * polynomial::<L, 7>(part, POWERS)
    }

    #[inline(always)]
    pub fn softmax<L: Lanes>(x: &mut [f32], columns: usize) {
        for row in x.chunks_exact_mut(columns) {
            let highest = fold(row, f32::MIN, |x| x, |highest, x| if x > highest { x } else { highest });
            for x in &mut *row {
                *x = exp::<L>(*x - highest);
            }
            let scale = 1.0 / fold(row, 0.0, |x| x, |sum, x| sum + x);
            for x in row {
                *x *= scale;
            }
        }
    }

    #[inline(always)]
    pub fn add_norm<L: Lanes>(x: &mut [f32], y: &[f32], weight: &[f32], bias: &[f32], epsilon: f32) {
        let width = weight.len();
        assert_eq!(bias.len(), width, "weight and bias of a norm are of one length");
        for (x, y) in x.chunks_exact_mut(width).zip(y.chunks_exact(width)) {
            for (x, y) in x.iter_mut().zip(y) {
                *x += y;
            }
            let mean = fold(x, 0.0, |x| x, |sum, x| sum + x) / width as f32;
            for x in &mut *x {
                *x -= mean;
            }
            let variance = fold(x, 0.0, |x| x * x, |sum, x| sum + x) / width as f32;
            let scale = 1.0 / (variance + epsilon).sqrt();
            for ((x, w), b) in x.iter_mut().zip(weight).zip(bias) {
                *x = mul_add::<L>(*x * scale, *w, *b);
            }
        }
    }

    /// What `of` makes of a row's numbers, brought together by `with`: in as many parts as the widest register has lanes, then those.
    #[inline(always)]
    fn fold(row: &[f32], start: f32, of: impl Fn(f32) -> f32, with: impl Fn(f32, f32) -> f32) -> f32 {
        let mut parts = [start; PARTS];
        let (chunks, rest) = row.as_chunks::<PARTS>();
        for chunk in chunks {
            for n in 0..PARTS {
                parts[n] = with(parts[n], of(chunk[n]));
            }
        }
        for (part, x) in parts.iter_mut().zip(rest) {
            *part = with(*part, of(*x));
        }
        parts.into_iter().fold(start, with)
    }
}

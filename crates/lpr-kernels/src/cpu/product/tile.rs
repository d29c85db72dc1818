//! The innermost loop: a tile of the product that stays in registers.

use crate::cpu::simd::Simd;

/// A tile, and the panels it is made of.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Steps of the panels.
    pub(super) steps: usize,
    /// `[steps, rows]`
    pub(super) lhs: *const f32,
    /// Distances of its steps and rows.
    pub(super) lhs_strides: [usize; 2],
    /// `[steps, 2 * LANES]`
    pub(super) rhs: *const f32,
    pub(super) target: *mut f32,
    pub(super) row_stride: usize,
    /// Columns that exist, at most `2 * LANES`.
    pub(super) cols: usize,
    /// Whether the product is added to what is there.
    pub(super) add: bool,
}

/// Writes a tile of `rows` rows, at least one and at most `TILE_ROWS`, or adds it.
///
/// # Safety
///
/// What the tile is made of must hold values, the target must be exclusive and writable for the tile and, to add,
/// hold values.
#[inline(always)]
pub(super) unsafe fn write_tile<S: Simd>(s: S, rows: usize, tile: Tile) {
    macro_rules! one_of {
        ($($rows:literal)+) => {
            match (rows, tile.lhs_strides[1]) {
                // SAFETY: the caller vouches for it.
                $(($rows, 1) if $rows <= S::TILE_ROWS => unsafe { write::<S, $rows, true>(s, tile) },)+
                // SAFETY: as above.
                $(($rows, _) if $rows <= S::TILE_ROWS => unsafe { write::<S, $rows, false>(s, tile) },)+
                _ => unreachable!("a tile of 1 to {} rows, not {rows}", S::TILE_ROWS),
            }
        };
    }
    one_of!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
}

/// With `DENSE`, the rows of the left factor lie side by side.
///
/// # Safety
///
/// As [`write_tile`].
#[inline(always)]
unsafe fn write<S: Simd, const ROWS: usize, const DENSE: bool>(s: S, tile: Tile) {
    // By the end of the loop, the lines of the target are there.
    for row in 0..ROWS {
        let target = tile.target.wrapping_add(row * tile.row_stride);
        s.prefetch::<true>(target);
        s.prefetch::<true>(target.wrapping_add(S::LANES));
    }
    let (mut lhs, mut rhs) = (tile.lhs, tile.rhs);
    let [step, row_stride] = tile.lhs_strides;
    let mut sums = [[s.splat(0.0); 2]; ROWS];
    for _ in 0..tile.steps {
        // SAFETY: both factors have that many steps.
        unsafe {
            let right = [
                s.read(rhs, S::LANES, 0.0),
                s.read(rhs.add(S::LANES), S::LANES, 0.0),
            ];
            for (row, sums) in sums.iter_mut().enumerate() {
                let left = s.splat(*lhs.add(if DENSE { row } else { row * row_stride }));
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = if S::PAIRS {
                        s.mul_add_pairs(left, right, *sum)
                    } else {
                        s.mul_add(left, right, *sum)
                    };
                }
            }
            lhs = lhs.add(step);
            rhs = rhs.add(2 * S::LANES);
        }
    }
    let second = tile.cols.saturating_sub(S::LANES);
    for (row, sums) in sums.into_iter().enumerate() {
        // SAFETY: the caller vouches for the target; a vector without lanes touches nothing.
        unsafe {
            let target = tile.target.add(row * tile.row_stride);
            let parts = [(target, tile.cols), (target.wrapping_add(S::LANES), second)];
            for ((target, len), sum) in parts.into_iter().zip(sums) {
                if len == 0 {
                    continue;
                }
                let sum = if tile.add {
                    s.add(s.read(target, len, 0.0), sum)
                } else {
                    sum
                };
                s.write(target, len, sum);
            }
        }
    }
}

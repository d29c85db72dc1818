use super::*;
use crate::{
    cpu::{
        buffer::written,
        matrix::{Matrix, MatrixMut},
    },
    test_support::Random,
};

/// A product of random factors, each stored as it is or transposed, and by its definition.
fn check(level: Level, [rows, depth, cols]: [usize; 3], transposed: [bool; 2]) {
    let mut random = Random::new((rows * 31 + depth * 7 + cols) as u64);
    let (lhs, rhs) = (random.floats(rows * depth), random.floats(depth * cols));
    let view = |data, [rows, cols]: [usize; 2], transposed| {
        if transposed {
            Matrix::new(data, cols, rows).transposed()
        } else {
            Matrix::new(data, rows, cols)
        }
    };
    let factors = || {
        (
            view(&lhs, [rows, depth], transposed[0]),
            view(&rhs, [depth, cols], transposed[1]),
        )
    };
    let at = |data: &[f32], [rows, cols]: [usize; 2], transposed, row, col| {
        f64::from(
            data[if transposed {
                col * rows + row
            } else {
                row * cols + col
            }],
        )
    };
    let mut found = new_buffer(rows * cols);
    let (a, b) = factors();
    MatrixMut::new(&mut found, rows, cols).set_product(level, a, b);
    let (a, b) = factors();
    // SAFETY: the product was just written.
    unsafe { MatrixMut::new(&mut found, rows, cols).add_product(level, a, b) };
    // SAFETY: as above.
    let found = unsafe { written(found) };
    for (index, &found) in found.iter().enumerate() {
        let (row, col) = (index / cols, index % cols);
        let terms = (0..depth).map(|k| {
            at(&lhs, [rows, depth], transposed[0], row, k)
                * at(&rhs, [depth, cols], transposed[1], k, col)
        });
        let exact = 2.0 * terms.sum::<f64>();
        // Each of `depth` additions rounds a sum of at most some multiple of sqrt(depth) by 2^-24 of it.
        let tolerance = 2e-6 + 2e-7 * depth as f64;
        assert!(
            (f64::from(found) - exact).abs() <= tolerance,
            "{level:?} [{rows}, {depth}] x [{depth}, {cols}] {transposed:?}: \
             element {row}, {col} is {found}, not {exact}"
        );
    }
}

#[test]
fn every_shape_and_layout_gives_the_product() {
    let shapes = [
        [1, 1, 1],
        [2, 3, 5],
        [14, 16, 32],
        [13, 17, 31],
        [15, 1, 33],
        [29, 257, 65],
        [3, 700, 7],
        [97, 19, 1],
        [1, 40, 530],
        [31, 513, 1030],
    ];
    for level in Level::available() {
        for shape in shapes {
            for transposed in [[false, false], [false, true], [true, false], [true, true]] {
                check(level, shape, transposed);
            }
        }
    }
}

/// Some rows and columns of a matrix that has more.
fn part(whole: Matrix<'_>) -> Matrix<'_> {
    whole.rows(1..6).cols(3..39)
}

#[test]
fn listed_rows_are_collected() {
    let data = Random::new(3).floats(5 * 40);
    let listed = [4, 0, 0, 3, 2, 4, 1];
    let collected: Vec<f32> = listed
        .iter()
        .flat_map(|&row| data[row * 40..(row + 1) * 40].to_vec())
        .collect();
    let copy = part(Matrix::new(&collected, listed.len(), 40));
    let view = part(Matrix::listed(&data, &listed, 40));
    for level in Level::available() {
        let product = |lhs: Matrix<'_>, rhs: Matrix<'_>| {
            let [rows, cols] = [lhs.dims()[0], rhs.dims()[1]];
            let mut target = new_buffer(rows * cols);
            MatrixMut::new(&mut target, rows, cols).set_product(level, lhs, rhs);
            // SAFETY: the product was just written.
            unsafe { written(target) }
        };
        assert_eq!(
            product(view, view.transposed()),
            product(copy, copy.transposed())
        );
        assert_eq!(
            product(view.transposed(), view),
            product(copy.transposed(), copy)
        );
    }
}

#[test]
fn a_part_of_a_product_has_the_same_bits() {
    let (rows, depth, cols) = (53, 300, 70);
    let mut random = Random::new(9);
    let (lhs, rhs) = (random.floats(rows * depth), random.floats(depth * cols));
    for level in Level::available() {
        let product = |first: usize, count: usize| {
            let mut target = new_buffer(count * cols);
            MatrixMut::new(&mut target, count, cols).set_product(
                level,
                Matrix::new(&lhs[first * depth..], count, depth),
                Matrix::new(&rhs, depth, cols),
            );
            // SAFETY: the product was just written.
            unsafe { written(target) }
        };
        let whole = product(0, rows);
        for (first, count) in [(0, 1), (7, 20), (40, 13)] {
            assert_eq!(product(first, count), whole[first * cols..][..count * cols]);
        }
    }
}

#[test]
fn a_packed_factor_gives_the_same_bits() {
    let (rows, depth, cols) = (131, 300, 1100);
    let mut random = Random::new(10);
    let (lhs, rhs) = (random.floats(depth * rows), random.floats(cols * depth));
    for level in Level::available().into_iter().chain(Level::bf16()) {
        let lhs = Matrix::new(&lhs, depth, rows).transposed();
        let rhs = Matrix::new(&rhs, cols, depth).transposed();
        let product = |lhs: Factor<'_>, rhs: Factor<'_>| {
            let [rows, cols] = [lhs.dims()[0], rhs.dims()[1]];
            let mut target = new_buffer(rows * cols);
            MatrixMut::new(&mut target, rows, cols).set_product(level, lhs, rhs);
            // SAFETY: the product was just written.
            unsafe { written(target) }
        };
        let packed = (Packed::lhs(level, lhs), Packed::rhs(level, rhs));
        let whole = product(lhs.into(), rhs.into());
        assert_eq!(product((&packed.0).into(), rhs.into()), whole, "{level:?}");
        assert_eq!(product(lhs.into(), (&packed.1).into()), whole, "{level:?}");
        for cols in [0..BLOCK_COLS, BLOCK_COLS..1100] {
            assert_eq!(
                product((&packed.0).into(), packed.1.cols(cols.clone()).into()),
                product(lhs.into(), rhs.cols(cols).into()),
                "{level:?}"
            );
        }
    }
}

#[test]
#[should_panic(expected = "factors that were packed for this product")]
fn a_factor_that_was_packed_for_the_other_side_is_refused() {
    let level = Level::current();
    let square = Matrix::new(&[1.0; 4], 2, 2);
    let packed = Packed::rhs(level, square);
    MatrixMut::new(&mut new_buffer(4), 2, 2).set_product(level, &packed, square);
}

#[test]
fn products_of_16_bit_factors_round_the_factors_only() {
    // Elsewhere such a level cannot be chosen.
    let Some(level) = Level::bf16() else { return };
    let rounded = |x: f32| {
        // To the nearest of the numbers whose lower 16 bits are zero, halves to even.
        let bits = x.to_bits();
        f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
    };
    for [rows, depth, cols] in [[1, 1, 1], [15, 17, 33], [29, 301, 65], [3, 2, 70]] {
        for transposed in [[false, false], [false, true], [true, false], [true, true]] {
            let mut random = Random::new((rows + depth + cols) as u64);
            let factors = [random.floats(rows * depth), random.floats(depth * cols)];
            let product = |level: Level, factors: &[Vec<f32>; 2]| {
                let view = |i: usize, [rows, cols]: [usize; 2]| {
                    if transposed[i] {
                        Matrix::new(&factors[i], cols, rows).transposed()
                    } else {
                        Matrix::new(&factors[i], rows, cols)
                    }
                };
                let mut target = new_buffer(rows * cols);
                MatrixMut::new(&mut target, rows, cols).set_product(
                    level,
                    view(0, [rows, depth]),
                    view(1, [depth, cols]),
                );
                // SAFETY: the product was just written.
                unsafe { written(target) }
            };
            let found = product(level, &factors);
            let exact = factors.map(|factor| factor.into_iter().map(rounded).collect());
            let exact = product(level.exact(), &exact);
            for (found, exact) in found.iter().zip(&exact) {
                assert!(
                    (found - exact).abs() <= 2e-6 + 2e-7 * depth as f32,
                    "{found}, not {exact}"
                );
            }
        }
    }
}

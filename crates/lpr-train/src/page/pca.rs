//! The plane in which a few vectors differ most.

/// Steps of the power iteration; the plane is a picture, not a result.
const ITERATIONS: usize = 300;

/// Vectors in the plane of their two largest principal components.
#[derive(Clone, Debug, PartialEq)]
pub struct Plane {
    /// A point per vector.
    pub points: Vec<[f64; 2]>,
    /// The part of the variance along each axis.
    pub explained: [f64; 2],
}

/// Projects `rows`, all of the same length, after their mean was taken away.
///
/// From the eigenvectors `u` and eigenvalues `l` of the matrix of inner products: the coordinates
/// along a component are `u sqrt(l)`. The sign of an axis is chosen so that its largest coordinate
/// is positive.
pub fn plane(rows: &[Vec<f64>]) -> Plane {
    let centered = centered(rows);
    let inner = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let row = |a: &Vec<f64>| -> Vec<f64> { centered.iter().map(|b| inner(a, b)).collect() };
    let mut gram: Vec<Vec<f64>> = centered.iter().map(row).collect();
    let total: f64 = (0..gram.len()).map(|i| gram[i][i]).sum();
    let mut plane = Plane {
        points: vec![[0.0; 2]; rows.len()],
        explained: [0.0; 2],
    };
    for axis in 0..2 {
        let (vector, value) = largest_eigenvector(&gram);
        if value <= 1e-12 * total {
            break;
        }
        for (i, point) in plane.points.iter_mut().enumerate() {
            point[axis] = vector[i] * value.sqrt();
            for (j, cell) in gram[i].iter_mut().enumerate() {
                *cell -= value * vector[i] * vector[j];
            }
        }
        plane.explained[axis] = value / total;
    }
    plane
}

/// Cosine of every pair of `rows`; 0 with a vector of zeros.
pub fn cosines(rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let unit = |row: &Vec<f64>| -> Vec<f64> {
        let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        row.iter()
            .map(|v| if norm > 0.0 { v / norm } else { 0.0 })
            .collect()
    };
    let units: Vec<Vec<f64>> = rows.iter().map(unit).collect();
    let dot = |a: &Vec<f64>, b: &Vec<f64>| a.iter().zip(b).map(|(a, b)| a * b).sum();
    units
        .iter()
        .map(|a| units.iter().map(|b| dot(a, b)).collect())
        .collect()
}

fn centered(rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let width = rows.first().map_or(0, Vec::len);
    let mut mean = vec![0.0; width];
    for row in rows {
        for (mean, value) in mean.iter_mut().zip(row) {
            *mean += value / rows.len() as f64;
        }
    }
    let minus_mean = |row: &Vec<f64>| row.iter().zip(&mean).map(|(v, m)| v - m).collect();
    rows.iter().map(minus_mean).collect()
}

/// The eigenvector of the largest eigenvalue, of length 1, and that value.
fn largest_eigenvector(matrix: &[Vec<f64>]) -> (Vec<f64>, f64) {
    let n = matrix.len();
    // A start that no eigenvector of a real case is orthogonal to.
    let mut vector: Vec<f64> = (0..n).map(|i| (1.0 + i as f64).sqrt().sin()).collect();
    let mut value = 0.0;
    for _ in 0..ITERATIONS {
        let times = |row: &Vec<f64>| row.iter().zip(&vector).map(|(a, b)| a * b).sum::<f64>();
        let product: Vec<f64> = matrix.iter().map(times).collect();
        value = product.iter().map(|v| v * v).sum::<f64>().sqrt();
        if value <= f64::MIN_POSITIVE {
            return (vec![0.0; n], 0.0);
        }
        vector = product.into_iter().map(|v| v / value).collect();
    }
    let largest = vector
        .iter()
        .copied()
        .max_by(|a, b| a.abs().total_cmp(&b.abs()));
    if largest.is_some_and(|largest| largest < 0.0) {
        vector = vector.into_iter().map(|v| -v).collect();
    }
    (vector, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_of_a_plane_keep_their_distances() {
        // A rectangle of 4 by 2, tilted in three dimensions.
        let (a, b) = (
            [2.0 / 3.0, 2.0 / 3.0, 1.0 / 3.0],
            [-2.0 / 3.0, 1.0 / 3.0, 2.0 / 3.0],
        );
        let corners = [[2.0, 1.0], [-2.0, 1.0], [2.0, -1.0], [-2.0, -1.0]];
        let corner = |[u, v]: [f64; 2]| (0..3).map(|d| 5.0 + u * a[d] + v * b[d]).collect();
        let rows: Vec<Vec<f64>> = corners.map(corner).to_vec();
        let plane = plane(&rows);
        for (i, [x, y]) in plane.points.iter().enumerate() {
            assert!(
                (x.abs() - 2.0).abs() < 1e-9 && (y.abs() - 1.0).abs() < 1e-9,
                "{i}: {plane:?}"
            );
        }
        let [first, second] = plane.explained;
        assert!(
            (first - 0.8).abs() < 1e-9 && (second - 0.2).abs() < 1e-9,
            "{plane:?}"
        );
    }

    #[test]
    fn equal_vectors_lie_in_one_point() {
        let plane = plane(&vec![vec![1.0, 2.0]; 3]);
        assert_eq!(plane.points, [[0.0; 2]; 3]);
        assert_eq!(plane.explained.map(f64::to_bits), [0; 2]);
        assert!(super::plane(&[]).points.is_empty());
    }

    #[test]
    fn cosines_do_not_depend_on_length() {
        let found = cosines(&[
            vec![3.0, 0.0],
            vec![0.0, 0.5],
            vec![-1.0, 0.0],
            vec![0.0, 0.0],
        ]);
        assert_eq!(found[0], [1.0, 0.0, -1.0, 0.0]);
    }
}

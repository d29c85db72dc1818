//! Which pieces of which documents share a row, so that hardly a position is left empty.
//!
//! A document longer than a row fills rows of its own. What is left of it, and every shorter
//! document, stays whole: the longest first, each goes to the row with the least room that still
//! holds it (best-fit decreasing; for language models: Ding et al. 2024, arXiv 2404.10830).

use std::collections::BTreeSet;
use std::ops::Range;

/// Tokens of one document that stand in one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Index of the document.
    pub(crate) document: usize,
    /// Which of its tokens.
    pub(crate) tokens: Range<usize>,
}

/// The rows of some documents.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Rows {
    /// In the order of their first documents, as are the pieces of each.
    pub(crate) rows: Vec<Vec<Piece>>,
    /// Lone last tokens of documents, which have nothing to predict and are in no row.
    pub(crate) cut_tokens: u64,
}

/// Places documents of the given numbers of tokens in rows of at most `row_len`.
pub(crate) fn best_fit(document_lens: &[usize], row_len: usize) -> Rows {
    let mut rows: Vec<Vec<Piece>> = Vec::new();
    let mut cut_tokens = 0;
    let mut rests = Vec::new();
    for (document, &len) in document_lens.iter().enumerate() {
        let full_rows = len / row_len;
        for row in 0..full_rows {
            let tokens = row * row_len..(row + 1) * row_len;
            rows.push(vec![Piece { document, tokens }]);
        }
        let tokens = full_rows * row_len..len;
        match tokens.len() {
            0 => {}
            1 => cut_tokens += 1,
            _ => rests.push(Piece { document, tokens }),
        }
    }
    rests.sort_by_key(|piece| (std::cmp::Reverse(piece.tokens.len()), piece.document));
    // Rows that are not full: the room in each, and its index.
    let mut open = BTreeSet::new();
    for piece in rests {
        let len = piece.tokens.len();
        let best = open.range((len, 0)..).next().copied();
        let (room, row) = best.unwrap_or((row_len, rows.len()));
        if !open.remove(&(room, row)) {
            rows.push(Vec::new());
        }
        rows[row].push(piece);
        if room > len {
            open.insert((room - len, row));
        }
    }
    for row in &mut rows {
        row.sort_by_key(|piece| piece.document);
    }
    rows.sort_by_key(|row| {
        row.first()
            .map(|piece| (piece.document, piece.tokens.start))
    });
    Rows { rows, cut_tokens }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn pieces(rows: &Rows) -> Vec<Vec<(usize, Range<usize>)>> {
        let piece = |piece: &Piece| (piece.document, piece.tokens.clone());
        let rows = rows.rows.iter();
        rows.map(|row| row.iter().map(piece).collect()).collect()
    }

    #[test]
    fn rests_go_where_they_fit_best_and_long_documents_fill_rows() {
        let rows = best_fit(&[5, 25, 4, 6, 3, 21], 10);
        let expected = [
            vec![(0, 0..5), (1, 20..25)],
            vec![(1, 0..10)],
            vec![(1, 10..20)],
            vec![(2, 0..4), (3, 0..6)],
            vec![(4, 0..3)],
            vec![(5, 0..10)],
            vec![(5, 10..20)],
        ];
        assert_eq!(pieces(&rows), expected);
        assert_eq!(rows.cut_tokens, 1);
    }

    #[test]
    fn every_token_has_one_place_and_little_room_is_left() {
        let mut random = Random::new(3, 5);
        let lens: Vec<usize> = (0..3000).map(|_| 2 + random.below(900) as usize).collect();
        let rows = best_fit(&lens, 256);
        let mut placed: Vec<Vec<bool>> = lens.iter().map(|&len| vec![false; len]).collect();
        for row in &rows.rows {
            assert!(!row.is_empty());
            assert!(row.iter().map(|piece| piece.tokens.len()).sum::<usize>() <= 256);
            for piece in row {
                for token in piece.tokens.clone() {
                    assert!(!std::mem::replace(&mut placed[piece.document][token], true));
                }
            }
        }
        let total: usize = lens.iter().sum();
        let missing = placed.iter().flatten().filter(|&&is| !is).count();
        assert_eq!(missing as u64, rows.cut_tokens);
        let positions = rows.rows.len() * 256;
        let waste = (positions - total + missing) as f64 / positions as f64;
        assert!(waste < 0.01, "{waste}");
    }

    #[test]
    fn nothing_gives_no_rows() {
        assert_eq!(best_fit(&[], 8), Rows::default());
    }
}

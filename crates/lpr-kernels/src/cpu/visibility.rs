//! Which keys each query of a batch sees, as ranges where possible.

use std::{collections::HashSet, ops::Range};

/// The documents and tokens of a batch, `[batch, seq]` each.
pub(crate) struct Documents {
    pub(crate) document_ids: Vec<i64>,
    pub(crate) is_token: Vec<i64>,
}

/// The keys that the queries of a batch of rows see.
#[derive(Clone, Debug)]
pub(crate) struct Visibility {
    seq: usize,
    /// For each query, a range outside of which it sees nothing; empty without a mask, where a
    /// query sees all keys up to its own.
    ranges: Vec<Range<u32>>,
    /// For rows whose documents or tokens are scattered, for each query and key of `0..seq` whether
    /// it is hidden.
    scattered: Vec<Option<Scattered>>,
}

/// The documents and tokens of one scattered row.
#[derive(Clone, Debug)]
struct Scattered {
    document_ids: Vec<i64>,
    is_token: Vec<bool>,
}

impl Visibility {
    /// Every query sees all keys up to its own.
    pub(crate) fn causal(seq: usize) -> Self {
        Self {
            seq,
            ranges: Vec::new(),
            scattered: Vec::new(),
        }
    }

    /// A query sees the tokens of its document up to its own position.
    pub(crate) fn by_document(documents: &Documents, seq: usize) -> Self {
        let mut visibility = Self::causal(seq);
        let rows = documents.document_ids.chunks_exact(seq.max(1));
        for (ids, tokens) in rows.zip(documents.is_token.chunks_exact(seq.max(1))) {
            if let Some(ranges) = document_ranges(ids, tokens) {
                visibility.ranges.extend(ranges);
                visibility.scattered.push(None);
            } else {
                visibility.ranges.extend((0..seq as u32).map(|q| 0..q + 1));
                visibility.scattered.push(Some(Scattered {
                    document_ids: ids.to_vec(),
                    is_token: tokens.iter().map(|&t| t == 1).collect(),
                }));
            }
        }
        visibility
    }

    /// The range of keys outside of which query `query` of row `row` sees nothing.
    pub(crate) fn range(&self, row: usize, query: usize) -> Range<usize> {
        let range = self.ranges.get(row * self.seq + query);
        range.map_or(0..query + 1, |r| r.start as usize..r.end as usize)
    }

    /// The range of keys outside of which none of these queries sees anything.
    pub(crate) fn joint_range(&self, row: usize, queries: Range<usize>) -> Range<usize> {
        let seen = queries.map(|query| self.range(row, query));
        let seen = seen.filter(|range| !range.is_empty());
        seen.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))
            .unwrap_or(0..0)
    }

    /// Replaces the scores of keys in `range` that the query does not see by negative infinity.
    /// False if it sees none.
    pub(crate) fn hide(
        &self,
        row: usize,
        query: usize,
        range: Range<usize>,
        scores: &mut [f32],
    ) -> bool {
        let Some(Some(scattered)) = self.scattered.get(row) else {
            return !range.is_empty();
        };
        let document = scattered.document_ids[query];
        let mut sees = false;
        for (key, score) in range.zip(scores) {
            if scattered.is_token[key] && scattered.document_ids[key] == document {
                sees = true;
            } else {
                *score = f32::NEG_INFINITY;
            }
        }
        sees
    }
}

/// The range each query sees, if the tokens come first and each document is in one piece.
fn document_ranges(ids: &[i64], tokens: &[i64]) -> Option<Vec<Range<u32>>> {
    let num_tokens = tokens.iter().take_while(|&&token| token == 1).count();
    if tokens[num_tokens..].contains(&1) {
        return None;
    }
    let mut closed = HashSet::new();
    let mut ranges: Vec<Range<u32>> = Vec::with_capacity(ids.len());
    let mut start = 0;
    for (query, id) in ids.iter().enumerate() {
        if query > 0 && ids[query - 1] != *id {
            closed.insert(ids[query - 1]);
            start = query;
            if closed.contains(id) {
                return None;
            }
        }
        let end = (query + 1).min(num_tokens).max(start);
        ranges.push(start as u32..end as u32);
    }
    Some(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visible(ids: &[i64], tokens: &[i64]) -> Vec<Vec<usize>> {
        let documents = Documents {
            document_ids: ids.to_vec(),
            is_token: tokens.to_vec(),
        };
        let visibility = Visibility::by_document(&documents, ids.len());
        let of_query = |query| {
            let range = visibility.range(0, query);
            let mut scores = vec![0.0; range.len()];
            let sees = visibility.hide(0, query, range.clone(), &mut scores);
            let seen: Vec<_> = range.zip(scores).filter(|&(_, s)| s == 0.0).collect();
            assert_eq!(sees, !seen.is_empty());
            seen.into_iter().map(|(key, _)| key).collect()
        };
        (0..ids.len()).map(of_query).collect()
    }

    #[test]
    fn packed_documents_and_padding_are_seen_as_ranges() {
        let seen = visible(&[4, 4, 9, 9, 9], &[1, 1, 1, 0, 0]);
        assert_eq!(seen, [vec![0], vec![0, 1], vec![2], vec![2], vec![2]]);
    }

    #[test]
    fn scattered_documents_and_tokens_follow_the_definition() {
        let seen = visible(&[1, 2, 1, 2], &[1, 0, 1, 1]);
        assert_eq!(seen, [vec![0], vec![], vec![0, 2], vec![3]]);
    }

    #[test]
    fn a_row_of_padding_sees_nothing() {
        assert_eq!(visible(&[0, 0], &[0, 0]), [vec![0; 0], vec![]]);
    }
}

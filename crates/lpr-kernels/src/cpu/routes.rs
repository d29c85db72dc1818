//! The choices of experts, ordered by expert.

use std::ops::Range;

/// Rows of one expert that a task works on.
const BLOCK_ROWS: usize = 256;

/// The choices ordered by expert. A slot is a choice in its original place,
/// `token * top_k + choice`; a row is one in the new order, in which an expert's rows are
/// consecutive and their slots ascend.
#[derive(Clone, Debug)]
pub(crate) struct Routes {
    /// Where the rows of each expert start, and the number of rows at last.
    offsets: Vec<usize>,
    slot_of_row: Vec<usize>,
    token_of_row: Vec<usize>,
    row_of_slot: Vec<usize>,
}

/// Rows of one expert.
#[derive(Clone, Debug)]
pub(crate) struct ExpertRows {
    pub(crate) expert: usize,
    pub(crate) rows: Range<usize>,
}

impl Routes {
    /// Sorts the chosen experts of all slots, `top_k` per token, by counting.
    ///
    /// # Panics
    ///
    /// If a choice is not in `0..num_experts`.
    pub(crate) fn new(chosen: &[i64], num_experts: usize, top_k: usize) -> Self {
        let index = |expert: i64| {
            let index = usize::try_from(expert).ok().filter(|&e| e < num_experts);
            index.unwrap_or_else(|| {
                panic!("experts: index {expert} is not below num_experts {num_experts}")
            })
        };
        let mut offsets = vec![0; num_experts + 1];
        for &expert in chosen {
            offsets[index(expert) + 1] += 1;
        }
        for e in 0..num_experts {
            offsets[e + 1] += offsets[e];
        }
        let mut next = offsets.clone();
        let mut slot_of_row = vec![0; chosen.len()];
        let mut row_of_slot = Vec::with_capacity(chosen.len());
        for (slot, &expert) in chosen.iter().enumerate() {
            let row = &mut next[index(expert)];
            slot_of_row[*row] = slot;
            row_of_slot.push(*row);
            *row += 1;
        }
        Self {
            offsets,
            token_of_row: slot_of_row.iter().map(|slot| slot / top_k).collect(),
            slot_of_row,
            row_of_slot,
        }
    }

    pub(crate) fn num_rows(&self) -> usize {
        self.slot_of_row.len()
    }

    pub(crate) fn row_of_slot(&self) -> &[usize] {
        &self.row_of_slot
    }

    pub(crate) fn slots(&self, rows: &Range<usize>) -> &[usize] {
        &self.slot_of_row[rows.clone()]
    }

    pub(crate) fn tokens(&self, rows: &Range<usize>) -> &[usize] {
        &self.token_of_row[rows.clone()]
    }

    /// All rows of every expert, also of those without any.
    pub(crate) fn experts(&self) -> impl Iterator<Item = ExpertRows> {
        let ends = self.offsets.windows(2).enumerate();
        ends.map(|(expert, ends)| ExpertRows {
            expert,
            rows: ends[0]..ends[1],
        })
    }

    /// All rows in blocks of bounded size, in order.
    pub(crate) fn blocks(&self) -> Vec<ExpertRows> {
        let in_blocks = |ExpertRows { expert, rows }| {
            let starts = rows.clone().step_by(BLOCK_ROWS);
            starts.map(move |start| ExpertRows {
                expert,
                rows: start..(start + BLOCK_ROWS).min(rows.end),
            })
        };
        self.experts().flat_map(in_blocks).collect()
    }
}

/// Cuts `buffer`, which has `width` elements per row, along blocks that cover all rows in order.
pub(crate) fn cut<'a, T>(
    mut buffer: &'a mut [T],
    blocks: &[ExpertRows],
    width: usize,
) -> Vec<&'a mut [T]> {
    let part = |block: &ExpertRows| {
        let (part, rest) = std::mem::take(&mut buffer).split_at_mut(block.rows.len() * width);
        buffer = rest;
        part
    };
    blocks.iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_by_expert_and_slots_ascend() {
        let routes = Routes::new(&[2, 0, 2, 3, 0, 2], 5, 1);
        assert_eq!(routes.slot_of_row, [1, 4, 0, 2, 5, 3]);
        assert_eq!(routes.row_of_slot, [2, 0, 3, 5, 1, 4]);
        let by_pairs = Routes::new(&[2, 0, 2, 3, 0, 2], 5, 2);
        assert_eq!(by_pairs.token_of_row, [0, 2, 0, 1, 2, 1]);
        let rows: Vec<_> = routes.experts().map(|e| e.rows).collect();
        assert_eq!(rows, [0..2, 2..2, 2..5, 5..6, 6..6]);
    }

    #[test]
    fn blocks_cover_all_rows_and_none_is_empty_or_mixed() {
        let mut chosen = vec![1; 2 * BLOCK_ROWS + 3];
        chosen.extend([3, 3]);
        let blocks = Routes::new(&chosen, 4, 1).blocks();
        let found: Vec<_> = blocks.iter().map(|b| (b.expert, b.rows.len())).collect();
        assert_eq!(found, [(1, BLOCK_ROWS), (1, BLOCK_ROWS), (1, 3), (3, 2)]);
        let mut buffer: Vec<_> = (0..2 * chosen.len()).collect();
        let parts = cut(&mut buffer, &blocks, 2);
        for (part, block) in parts.iter().zip(&blocks) {
            assert_eq!(part[0], 2 * block.rows.start);
            assert_eq!(part.len(), 2 * block.rows.len());
        }
    }
}

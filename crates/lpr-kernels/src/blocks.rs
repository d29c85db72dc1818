//! Where the portable experts compute each choice: in rows, sorted by expert, in blocks that have one
//! expert each.

use crate::rows::RowMap;
use burn::tensor::{Device, Int, Tensor, TensorData};

/// How many rows there are. Depends on the number of choices alone, never on what was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Blocks, enough for all choices however they are spread.
    pub blocks: usize,
    /// Rows of a block: about a quarter of the mean number of choices per expert, so that the partly
    /// filled last blocks of the experts are about a quarter of all.
    pub block_rows: usize,
}

impl BlockSizes {
    /// For so many choices, at least one expert.
    pub fn new(choices: usize, num_experts: usize) -> Self {
        /// Rows that products compute together on any device.
        const TILE: usize = 16;
        let quarter = choices.div_ceil(4 * num_experts).max(1);
        let block_rows = if quarter > TILE {
            quarter.next_multiple_of(TILE)
        } else {
            quarter
        };
        // Each expert that is chosen at all leaves at most block_rows - 1 rows empty.
        let empty = num_experts.min(choices) * (block_rows - 1);
        Self {
            blocks: choices.saturating_add(empty) / block_rows,
            block_rows,
        }
    }

    /// Rows of all blocks.
    pub fn rows(self) -> usize {
        self.blocks * self.block_rows
    }
}

/// Which choice is in which row. A slot is the place of a choice in `expert_indices`, row by row. The
/// rows of an expert have its slots in ascending order, in blocks one after the other; after the last
/// expert's there may be blocks of none.
#[derive(Debug)]
pub(crate) struct Blocks {
    pub(crate) sizes: BlockSizes,
    /// -1 for a block of none.
    expert_of_block: Tensor<1, Int>,
    row_of_slot: Tensor<1, Int>,
    /// -1 for an empty row.
    slot_of_row: Tensor<1, Int>,
    top_k: usize,
}

impl Blocks {
    /// `expert_indices` is `[tokens, top_k]`. On a GPU nothing is read from it; an index that is not
    /// below `num_experts` is then some other expert.
    ///
    /// # Panics
    ///
    /// On the CPU if an index is not below `num_experts`.
    pub(crate) fn new(expert_indices: Tensor<2, Int>, num_experts: usize) -> Self {
        let [tokens, top_k] = expert_indices.dims();
        let chosen = expert_indices.reshape([tokens * top_k]);
        let sizes = BlockSizes::new(tokens * top_k, num_experts);
        let [expert_of_block, row_of_slot, slot_of_row] = tables(chosen, num_experts, sizes);
        Self {
            sizes,
            expert_of_block,
            row_of_slot,
            slot_of_row,
            top_k,
        }
    }

    /// From tokens to rows.
    pub(crate) fn to_rows(&self) -> RowMap {
        let is_empty = self.slot_of_row.clone().lower_elem(0);
        let token = self.slot_of_row.clone().div_scalar(self.top_k as i64);
        RowMap {
            taken: token.mask_fill(is_empty, -1),
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            sorted: self.row_of_slot.clone(),
        }
    }

    /// From rows to slots.
    pub(crate) fn to_slots(&self) -> RowMap {
        RowMap {
            taken: self.row_of_slot.clone(),
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            sorted: self.slot_of_row.clone(),
        }
    }

    /// From the weights of all experts to those of every block.
    pub(crate) fn to_blocks(&self) -> RowMap {
        RowMap {
            taken: self.expert_of_block.clone(),
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            sorted: {
                let device = self.expert_of_block.device();
                Tensor::arange(0..self.sizes.blocks as i64, &device)
            },
        }
    }
}

/// [`Blocks::expert_of_block`], `row_of_slot` and `slot_of_row`.
type Tables = [Tensor<1, Int>; 3];

fn tables(chosen: Tensor<1, Int>, num_experts: usize, sizes: BlockSizes) -> Tables {
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    if !crate::dispatch::is_cpu(&chosen.device()) {
        return on_device(chosen, num_experts, sizes);
    }
    on_host(chosen, num_experts, sizes)
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn on_device(chosen: Tensor<1, Int>, num_experts: usize, sizes: BlockSizes) -> Tables {
    let (device, block_rows) = (chosen.device(), sizes.block_rows as i64);
    let digits = crate::gpu::order::Digits::new(chosen, 1, num_experts);
    let counts = digits.counts();
    let blocks = (counts.clone().sum_dim(0) + (block_rows - 1)) / block_rows;
    // The first block after those of each expert, [1, num_experts].
    let end = blocks.clone().cumsum(1);
    let first_row = (end.clone() - blocks) * block_rows;
    let (row_of_slot, slot_of_row) = digits.places(counts, first_row, sizes.rows());
    // The expert of a block is the number of those whose blocks end before it.
    let all = [sizes.blocks, num_experts];
    let block = Tensor::<1, Int>::arange(0..sizes.blocks as i64, &device);
    let ends_before = end
        .expand(all)
        .lower_equal(block.reshape([sizes.blocks, 1]).expand(all));
    let expert = ends_before.int().sum_dim(1).reshape([sizes.blocks]);
    let is_none = expert.clone().greater_equal_elem(num_experts as i64);
    [expert.mask_fill(is_none, -1), row_of_slot, slot_of_row]
}

fn on_host(chosen: Tensor<1, Int>, num_experts: usize, sizes: BlockSizes) -> Tables {
    let device = chosen.device();
    let chosen: Vec<i64> = chosen
        .try_into_vec_as()
        .expect("the CPU's tensors are readable");
    let index = |&expert: &i64| {
        let index = usize::try_from(expert).ok().filter(|&e| e < num_experts);
        index.unwrap_or_else(|| {
            panic!("experts: index {expert} is not below num_experts {num_experts}")
        })
    };
    let chosen: Vec<usize> = chosen.iter().map(index).collect();
    let mut counts = vec![0; num_experts];
    for &expert in &chosen {
        counts[expert] += 1;
    }
    let mut expert_of_block = Vec::with_capacity(sizes.blocks);
    let mut next_row = Vec::with_capacity(num_experts);
    for (expert, count) in counts.into_iter().enumerate() {
        next_row.push(expert_of_block.len() * sizes.block_rows);
        let blocks = usize::div_ceil(count, sizes.block_rows);
        expert_of_block.extend(std::iter::repeat_n(expert as i64, blocks));
    }
    expert_of_block.resize(sizes.blocks, -1);
    let mut row_of_slot = Vec::with_capacity(chosen.len());
    let mut slot_of_row = vec![-1; sizes.rows()];
    for (slot, expert) in chosen.into_iter().enumerate() {
        let row = next_row[expert];
        next_row[expert] += 1;
        row_of_slot.push(row as i64);
        slot_of_row[row] = slot as i64;
    }
    [expert_of_block, row_of_slot, slot_of_row].map(|table| ints(table, &device))
}

fn ints(values: Vec<i64>, device: &Device) -> Tensor<1, Int> {
    let len = values.len();
    Tensor::from_data(TensorData::new(values, [len]), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::Random;

    fn read(tensor: Tensor<1, Int>) -> Vec<i64> {
        tensor.try_into_vec_as().expect("readable")
    }

    /// Every slot has one row in a block of its expert, and the tables are each other's inverse.
    fn assert_complete(chosen: &[i64], top_k: usize, num_experts: usize) {
        let data = TensorData::new(chosen.to_vec(), [chosen.len() / top_k, top_k]);
        let indices = Tensor::from_data(data, &Device::flex());
        let blocks = Blocks::new(indices, num_experts);
        let expert_of_block = read(blocks.expert_of_block.clone());
        let slot_of_row = read(blocks.slot_of_row.clone());
        assert_eq!(expert_of_block.len(), blocks.sizes.blocks);
        assert_eq!(slot_of_row.len(), blocks.sizes.rows());
        let rows = read(blocks.row_of_slot.clone());
        for (slot, (&row, &expert)) in rows.iter().zip(chosen).enumerate() {
            let row = row as usize;
            assert_eq!(slot_of_row[row], slot as i64);
            assert_eq!(expert_of_block[row / blocks.sizes.block_rows], expert);
        }
        let filled = slot_of_row.iter().filter(|&&slot| slot >= 0);
        assert_eq!(filled.count(), chosen.len());
        let tokens = read(blocks.to_rows().taken);
        for (token, slot) in tokens.into_iter().zip(slot_of_row) {
            let expected = if slot < 0 { -1 } else { slot / top_k as i64 };
            assert_eq!(token, expected);
        }
    }

    #[test]
    fn every_choice_has_a_row_however_they_are_spread() {
        let mut random = Random::new(5);
        for (tokens, num_experts, top_k) in [
            (1, 1, 1),
            (1, 1024, 8),
            (97, 7, 7),
            (1009, 13, 3),
            (640, 4, 2),
        ] {
            let all = 0..tokens * top_k;
            let spread: Vec<i64> = all
                .clone()
                .map(|_| random.below(num_experts) as i64)
                .collect();
            assert_complete(&spread, top_k, num_experts);
            let same: Vec<i64> = all.clone().map(|slot| (slot % top_k) as i64).collect();
            assert_complete(&same, top_k, num_experts);
            // Each expert's last block has one row.
            let block_rows = BlockSizes::new(tokens * top_k, num_experts).block_rows;
            let uneven = |slot: usize| (slot / (block_rows + 1) % num_experts) as i64;
            assert_complete(&all.map(uneven).collect::<Vec<_>>(), top_k, num_experts);
        }
    }

    #[test]
    fn about_a_quarter_of_the_rows_is_empty() {
        let sizes = |choices, num_experts| {
            let sizes = BlockSizes::new(choices, num_experts);
            (sizes.blocks, sizes.block_rows)
        };
        assert_eq!(sizes(16 * 1024 * 8, 128), (639, 256));
        assert_eq!(sizes(2, 128), (2, 1));
        assert_eq!(sizes(0, 128), (0, 1));
        // A quarter is 25 rows, two tiles have room for them: (400 + 4 * 31) / 32 blocks.
        assert_eq!(sizes(400, 4), (16, 32));
    }
}

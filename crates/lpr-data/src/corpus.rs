//! The sources of a split: which files each has, how much it weighs, and what it is.

use std::collections::HashSet;

use crate::config::{DataConfig, OnDataEnd, Packing};
use crate::documents::{Shuffle, StreamOptions, check_openable};
use crate::error::{DataError, Warning};
use crate::fingerprint::DataFingerprint;
use crate::hub::OwnHub;
use crate::mixture::{MixtureOptions, SourceOptions};
use crate::position::{DataPosition, SourcePosition};
use crate::prepared::check_prepared;
use crate::random::key;
use crate::source::{Shard, resolve};
use crate::split::Split;
use crate::tokenizer::Tokenizer;

/// A split that can be read.
pub(crate) struct Corpus {
    /// Dropping it ends what the streams wait for.
    pub(crate) hub: OwnHub,
    pub(crate) streams: Vec<StreamOptions>,
    pub(crate) mixture: MixtureOptions,
    pub(crate) fingerprint: DataFingerprint,
    pub(crate) warnings: Vec<Warning>,
}

impl Corpus {
    /// Finds the files of a split, opens each once to check its footer and schema, and reads its
    /// ends for the fingerprint.
    pub(crate) fn open(
        config: &DataConfig,
        split: Split,
        tokenizer: &Tokenizer,
    ) -> Result<Self, DataError> {
        if config.sources(split).is_empty() {
            return Err(DataError::NoSources { split });
        }
        let is_train = split == Split::Train;
        let repeat = is_train && config.on_data_end == OnDataEnd::Repeat;
        let hub = config.own_hub();
        let mut warnings = Vec::new();
        let (mut streams, mut sources) = (Vec::new(), Vec::new());
        for (index, (entries, weight)) in weighted_sources(config, split).into_iter().enumerate() {
            let (shards, found) = resolve(entries, &hub)?;
            check_prepared(&shards, tokenizer)?;
            warnings.extend(found);
            let shuffle = Shuffle {
                key: key(&[config.shuffle_seed, index as u64]),
                window: config.shuffle_window,
            };
            let stream = StreamOptions {
                shards: shards.into(),
                split,
                text_column: config.text_column.clone(),
                on_bad_shard: config.on_bad_shard,
                repeat,
                shuffle: (is_train && config.shuffle).then_some(shuffle),
            };
            warnings.extend(check_openable(&stream)?);
            sources.push(SourceOptions {
                entry: weight.and(entries.first().cloned()),
                weight: weight.unwrap_or(1.0),
                num_shards: stream.shards.len(),
            });
            streams.push(stream);
        }
        warnings.extend(shared_files(&streams));
        let shards = streams.iter().map(|stream| &*stream.shards);
        let fingerprint = DataFingerprint::new(config, tokenizer, shards)?;
        let eos_id = tokenizer.eos_id();
        Ok(Self {
            hub,
            mixture: MixtureOptions {
                split,
                sources,
                eos_id: eos_id.filter(|_| config.packing != Packing::None),
                repeat,
            },
            streams,
            fingerprint,
            warnings,
        })
    }

    /// `start` with a place for each source.
    pub(crate) fn position(&self, start: &DataPosition) -> Result<DataPosition, DataError> {
        let mut position = start.clone();
        if position.sources.is_empty() {
            position.sources = vec![SourcePosition::default(); self.streams.len()];
        }
        let (found, expected) = (position.sources.len(), self.streams.len());
        let mut reason = (found != expected)
            .then(|| format!("it has places in {found} sources, and there are {expected}"));
        for (source, stream) in position.sources.iter().zip(&self.streams) {
            let (shard, num_shards) = (source.cursor.shard, stream.shards.len());
            if shard > num_shards {
                reason = Some(format!("it is in file {shard} of {num_shards}"));
            }
        }
        match reason {
            Some(reason) => Err(DataError::PositionMismatch { reason }),
            None => Ok(position),
        }
    }
}

/// The entries of each source and its weight, if the config has weights.
fn weighted_sources(config: &DataConfig, split: Split) -> Vec<(&[String], Option<f64>)> {
    let entries = config.sources(split);
    if split == Split::Train && !config.weights.is_empty() {
        let weights = config.weights.iter().copied().map(Some);
        return entries.chunks(1).zip(weights).collect();
    }
    vec![(entries, None)]
}

fn shared_files(streams: &[StreamOptions]) -> Vec<Warning> {
    let mut seen = HashSet::new();
    let shards = streams.iter().flat_map(|stream| stream.shards.iter());
    shards
        .map(Shard::path)
        .filter(|path| !seen.insert(*path))
        .map(|path| Warning::SharedFile {
            path: path.to_owned(),
        })
        .collect()
}

//! `lpr-train generate`

use std::io::Read;

use lpr_data::{DataError, Tokenizer};
use lpr_model::random::Stream;
use lpr_model::{CausalLm, TextSoFar};
use serde::Serialize;

use super::print_findings;
use crate::checkpoint::Checkpoint;
use crate::cli::GenerateArgs;
use crate::error::{Outcome, TrainError};
use crate::hub;
use crate::report::{Bars, Verbosity};
use crate::sampling::Sampling;
use crate::session;
use crate::signals::StopRequest;

/// What `--json` prints.
#[derive(Serialize)]
struct Findings {
    texts: Vec<Continued>,
}

/// A prompt and what was added to it.
#[derive(Serialize)]
struct Continued {
    prompt: String,
    /// The prompt and what follows.
    text: String,
    /// The tokens that were added.
    tokens: Vec<u32>,
    /// The last one is the mark of the end of a document.
    ended: bool,
}

/// Runs the command.
///
/// # Errors
/// A checkpoint that is not valid, a prompt without a token, a model whose logits are no numbers.
pub fn run(args: &GenerateArgs, verbosity: Verbosity) -> Result<Outcome, TrainError> {
    let stop = StopRequest::on_signals().map_err(TrainError::Signals)?;
    let checkpoint = Checkpoint::open(&args.checkpoint)?;
    let mut config = session::checkpoint_config(&checkpoint)?;
    if let Some(device) = &args.device {
        config.train.device.clone_from(device);
    }
    config.data.hub = hub::open(&stop, verbosity, &Bars::stderr(verbosity));
    let device = session::open_device(&config)?;
    let tokenizer = session::open_tokenizer(&config)?;
    let prompts = args.prompts.iter().map(|text| prompt(text));
    let prompts = prompts.collect::<Result<Vec<_>, _>>()?;
    let tokens = prompts.iter().map(|text| first_tokens(&tokenizer, text));
    let tokens = tokens.collect::<Result<Vec<_>, _>>()?;
    let writer = Writer {
        model: session::load_model(&checkpoint, &config, &device)?,
        tokenizer: &tokenizer,
        sampling: Sampling {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
        },
        max_new_tokens: args.max_new_tokens,
        stop: &stop,
    };
    let mut texts = Vec::new();
    for (index, (prompt, tokens)) in prompts.into_iter().zip(tokens).enumerate() {
        let random = Stream::new(args.seed).child("generate").index(index as u64);
        let (tokens, ended) = writer.go_on(&tokens, random)?;
        let visible = &tokens[..tokens.len() - usize::from(ended)];
        let text = prompt.clone() + &tokenizer.decode(visible).map_err(DataError::from)?;
        texts.push(Continued {
            prompt,
            text,
            tokens,
            ended,
        });
    }
    let findings = Findings { texts };
    print_findings(args.json, &findings, || words(&findings))?;
    Ok(if stop.is_set() {
        Outcome::StoppedEarly
    } else {
        Outcome::Done
    })
}

/// The text of an argument.
fn prompt(argument: &str) -> Result<String, TrainError> {
    if argument != "-" {
        return Ok(argument.to_owned());
    }
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .map_err(|error| TrainError::Usage(format!("the standard input is no text: {error}")))?;
    Ok(text)
}

/// The tokens of a prompt; those of none are the mark that stands between documents.
fn first_tokens(tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<u32>, TrainError> {
    let tokens = tokenizer.encode(prompt).map_err(DataError::from)?;
    if !tokens.is_empty() {
        return Ok(tokens);
    }
    let mark = tokenizer.eos_id().map(|mark| vec![mark]);
    mark.ok_or_else(|| {
        let text = "the prompt is empty, and the tokenizer has no mark between documents; give a \
                    word to begin with";
        TrainError::Usage(text.to_owned())
    })
}

/// Writes texts with a model.
struct Writer<'a> {
    model: CausalLm,
    tokenizer: &'a Tokenizer,
    sampling: Sampling,
    max_new_tokens: usize,
    stop: &'a StopRequest,
}

impl Writer<'_> {
    /// The tokens after `tokens`, and whether the last one is the mark of the end.
    fn go_on(&self, tokens: &[u32], random: Stream) -> Result<(Vec<u32>, bool), TrainError> {
        let mut text = TextSoFar::default();
        let mut logits = self.model.next_logits(tokens, &mut text);
        let mut added = Vec::new();
        while added.len() < self.max_new_tokens && !self.stop.is_set() {
            let values: Vec<f32> = logits.into_data().iter::<f32>().collect();
            // The model may have rows that no token belongs to.
            let values = &values[..self.tokenizer.vocab_size()];
            let uniform = random.index(added.len() as u64).uniform();
            let token = self.sampling.choose(values, uniform);
            let token = token.ok_or(TrainError::LogitsNotFinite)? as u32;
            added.push(token);
            if self.tokenizer.eos_id() == Some(token) {
                return Ok((added, true));
            }
            logits = self.model.next_logits(&[token], &mut text);
        }
        Ok((added, false))
    }
}

fn words(found: &Findings) -> String {
    let texts: Vec<&str> = found.texts.iter().map(|text| text.text.as_str()).collect();
    texts.join("\n\n")
}

//! The loop around the step: data, cadence of log, evaluation and checkpoint, stopping.

use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::module::Module;
use burn::tensor::Device;
use lpr_data::{DataError, DataLoader, Split, TokenBatch, Tokenizer};
use lpr_model::CausalLm;

use crate::balance::LoadCounts;
use crate::batch::MicroBatch;
use crate::clock;
use crate::config::RunConfig;
use crate::data_wait::DataWait;
use crate::error::{Outcome, TrainError};
use crate::eval::evaluate;
use crate::fault::{self, Point};
use crate::liveness::{Watch, check_counts};
use crate::optimizer::Optimizer;
use crate::record::{BalanceRecord, DataRecord, EvalRecord, StepRecord};
use crate::report::{Level, Reporter};
use crate::saver::Saver;
use crate::schedule::Schedule;
use crate::session::{self, RunState};
use crate::signals::{SaveRequest, StopRequest};
use crate::spoil;
use crate::step::{StepPlan, StepReport, train_step};

mod saving;
mod tracing;
mod unstable;

/// Everything a run works with, apart from the model, which every step replaces.
pub struct Trainer<'a> {
    /// The resolved configuration.
    pub config: &'a RunConfig,
    /// The plain device; the model lives on it with autodiff.
    pub device: Device,
    /// The tokenizer of all data.
    pub tokenizer: Arc<Tokenizer>,
    /// The training data, standing at `state.data`.
    pub loader: DataLoader,
    /// AdamW with its averages.
    pub optimizer: Optimizer,
    /// What the next checkpoint remembers.
    pub state: RunState,
    /// Writes checkpoints.
    pub saver: Saver,
    /// Where records go.
    pub reporter: &'a mut dyn Reporter,
    /// Set when the run is asked to save and stop.
    pub stop: StopRequest,
    /// Set when the run is asked to save and go on.
    pub save: SaveRequest,
    /// Sees to it that the balancers live.
    pub watch: Watch<'a>,
    /// How many positions of a logged step or an evaluation are traced, if any.
    pub trace_routing: Option<usize>,
}

/// Time and tokens since the last logged step.
struct Window {
    start: Instant,
    steps: u32,
    tokens: usize,
    data_wait: Duration,
}

impl Window {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            steps: 0,
            tokens: 0,
            data_wait: Duration::ZERO,
        }
    }
}

impl Trainer<'_> {
    /// Trains until the last step, the end of the data, or a request to stop; evaluates and saves.
    ///
    /// # Errors
    /// Data that cannot be read, a step that is not finite, a checkpoint that cannot be written.
    pub fn run(&mut self, mut model: CausalLm) -> Result<Outcome, TrainError> {
        let total_steps = self.config.total_steps();
        let schedule = Schedule::of(self.config);
        let mut data_ended = false;
        let mut window = Window::new();
        let mut data_wait = DataWait::default();
        loop {
            let step = self.state.step;
            let is_last = step >= total_steps || data_ended;
            // Evaluation comes first, so that a checkpoint knows the evaluation of its weights; a
            // run that was stopped in the middle of one makes up for it.
            let evaluates = self.is_evaluation_due(is_last) && !self.state.is_evaluated();
            if evaluates && !self.evaluate(&model)? {
                return self.stop_early(&model);
            }
            if is_last {
                self.save_last(&model, evaluates)?;
                return Ok(Outcome::Done);
            }
            self.save_if_due(&model, evaluates);
            if self.stop.is_set() {
                return self.stop_early(&model);
            }

            let wait = Instant::now();
            let batches = match self.next_step_batches() {
                Ok(Some(batches)) => batches,
                Ok(None) => {
                    self.say_data_ended(total_steps);
                    data_ended = true;
                    continue;
                }
                Err(DataError::Interrupted) => continue,
                Err(error) => {
                    // What was trained so far must not be lost to a bad file.
                    self.rescue(&model);
                    return Err(error.into());
                }
            };
            window.data_wait += wait.elapsed();
            let (next, report) = self.step(model, &batches, &schedule)?;
            model = next;
            let Some(report) = report else {
                continue;
            };
            window.steps += 1;
            window.tokens += report.num_tokens;

            let step = self.state.step;
            self.reporter.progress(step);
            if self.is_logged(step) {
                self.log(&report, schedule.learning_rate(step - 1), &window)?;
                let warning = data_wait.after_window(window.data_wait, window.start.elapsed());
                if let Some(warning) = warning {
                    self.say(Level::Warning, &warning);
                }
                window = Window::new();
            }
            fault::reached(Point::StepEnd);
        }
    }

    /// Whether a log line follows the last of `step` steps.
    fn is_logged(&self, step: u64) -> bool {
        step.is_multiple_of(self.config.log.every_steps) || step == self.config.total_steps()
    }

    fn is_evaluation_due(&self, is_last: bool) -> bool {
        let step = self.state.step;
        let config = &self.config.eval;
        is_last || (step == 0 && config.at_start) || is_due(step, config.every_steps)
    }

    /// The batches of one optimizer step, or `None` when the data cannot fill it any more.
    fn next_step_batches(&mut self) -> Result<Option<Vec<TokenBatch>>, DataError> {
        fault::reached(Point::DataBatch);
        let mut batches = Vec::new();
        for _ in 0..self.config.train.gradient_accumulation_steps {
            let batch = self.loader.next_batch()?;
            self.pass_on_warnings();
            match batch {
                Some(batch) if batch.num_rows == self.config.train.micro_batch_size => {
                    batches.push(batch);
                }
                _ => return Ok(None),
            }
        }
        Ok(Some(batches))
    }

    fn pass_on_warnings(&mut self) {
        for warning in self.loader.warnings() {
            self.say(Level::Warning, &warning.to_string());
        }
    }

    /// The model after a step and what it did; nothing if the run went back to a checkpoint, or was
    /// asked to stop before the end of the step.
    fn step(
        &mut self,
        model: CausalLm,
        batches: &[TokenBatch],
        schedule: &Schedule,
    ) -> Result<(CausalLm, Option<StepReport>), TrainError> {
        let step = self.state.step;
        let is_logged = self.is_logged(step + 1);
        let found = (self.watch).before_step(&model, step, batches, &self.device, is_logged)?;
        for text in found {
            self.say(Level::Debug, &text);
        }
        let micro_batches: Vec<_> = batches
            .iter()
            .map(|batch| MicroBatch::new(batch, &self.device))
            .collect();
        let stability = &self.config.stability;
        let plan = StepPlan {
            learning_rate: spoil::learning_rate(schedule.learning_rate(step)),
            max_grad_norm: self.config.optimizer.max_grad_norm,
            noise: StepPlan::noise(self.config.train.seed, step, micro_batches.len()),
            max_loss: self.state.stability.max_loss(stability),
            stop: self.stop.clone(),
            traced_positions: self.traced_positions(step + 1).unwrap_or(0),
            gradient_checkpointing: self.config.train.gradient_checkpointing,
        };
        let router = &self.config.router;
        let stepped = train_step(model, &mut self.optimizer, router, &micro_batches, &plan);
        let (model, report) = match stepped {
            Ok(done) => done,
            Err(refused) => return self.refuse(*refused, batches, &plan),
        };
        check_counts(
            &micro_batches,
            &report,
            self.config.model.decoder().moe.top_k,
        )?;
        (self.watch).after_step(&model, step + 1, plan.learning_rate, &report)?;
        if self.state.stability.is_spike(stability, report.loss_ce) {
            let words = self.spike_in_words(report.loss_ce);
            self.say(Level::Warning, &format!("step {}: {words}", step + 1));
        }
        self.state.stability.applied(stability, report.loss_ce);
        self.state.add_loads(&report.loads);
        self.state.step += 1;
        self.trace_step(batches, &report);
        if let Some(last) = batches.last() {
            self.state.data = last.position.clone();
        }
        Ok((model, Some(report)))
    }

    fn log(&mut self, report: &StepReport, lr: f64, window: &Window) -> Result<(), TrainError> {
        let seconds = window.start.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
        let steps = f64::from(window.steps.max(1));
        let state = &mut self.state;
        let record = StepRecord {
            step: state.step,
            epoch: state.data.epoch(),
            tokens_seen: state.data.tokens,
            loss_ce: report.loss_ce,
            loss_total: report.loss_total,
            aux: report
                .router_losses
                .iter()
                .map(|(name, value, _)| ((*name).to_owned(), *value))
                .collect(),
            grad_norm: report.grad_norm,
            lr,
            tok_s: window.tokens as f64 / seconds,
            data_wait_ms: window.data_wait.as_secs_f64() * 1e3 / steps,
            step_time_ms: seconds * 1e3 / steps,
            wall_time: clock::now(),
            stability: state.stability.totals(),
            data: DataRecord::new(&state.data),
            balance: BalanceRecord::new(&state.window, Some(&state.trackers))?,
        };
        state.window.iter_mut().for_each(LoadCounts::reset);
        self.reporter.step(&record);
        for warning in self.state.idle.report() {
            self.say(Level::Warning, &warning);
        }
        Ok(())
    }

    /// Evaluates if there is validation data. False if the run was asked to stop before the end.
    fn evaluate(&mut self, model: &CausalLm) -> Result<bool, TrainError> {
        if self.config.data.validation.is_empty() {
            return Ok(true);
        }
        let mut loader = match session::open_validation(self.config, &self.tokenizer) {
            Err(TrainError::Data(DataError::Interrupted)) => return Ok(false),
            loader => loader?,
        };
        loader.interrupt_by(self.stop.flag());
        let stop = self.stop.clone();
        let max_tokens = self.config.eval.max_tokens;
        let stopped = || stop.is_set();
        let model = model.valid();
        let recording = self.evaluation_recording();
        let device = &self.device;
        let mut found = match evaluate(&model, loader, max_tokens, device, recording, &stopped) {
            Ok(Some(found)) => found,
            Ok(None) | Err(DataError::Interrupted) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        for warning in &found.warnings {
            self.say(Level::Warning, warning);
        }
        let record = EvalRecord {
            step: self.state.step,
            wall_time: clock::now(),
            eval: found.summary()?,
        };
        self.state.add_evaluation(&record);
        self.reporter.evaluation(&record);
        let tokens = found
            .token_choices
            .summary(self.state.step, &self.tokenizer);
        self.reporter.expert_tokens(&tokens);
        self.report_trace(Split::Validation, found.recording.take());
        Ok(true)
    }

    fn say_data_ended(&mut self, total_steps: u64) {
        let text = format!(
            "the training data ended after {} of {total_steps} steps; \
             data.on_data_end = \"repeat\" starts it over",
            self.state.step
        );
        self.say(Level::Warning, &text);
    }

    fn say(&mut self, level: Level, text: &str) {
        self.reporter.message(level, text);
    }
}

/// Whether something that happens every `every` steps happens after `step`; 0 is never.
fn is_due(step: u64, every: u64) -> bool {
    step > 0 && every > 0 && step.is_multiple_of(every)
}

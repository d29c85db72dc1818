//! The loop around the step: data, cadence of log, evaluation and checkpoint, stopping.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::module::Module;
use burn::tensor::Device;
use lpr_data::{DataError, DataLoader, TokenBatch, Tokenizer};
use lpr_model::CausalLm;

use crate::balance::LoadCounts;
use crate::batch::MicroBatch;
use crate::clock;
use crate::config::RunConfig;
use crate::data_wait::DataWait;
use crate::error::{Outcome, TrainError};
use crate::eval::evaluate;
use crate::liveness::{Watch, check_counts};
use crate::optimizer::Optimizer;
use crate::record::{BalanceRecord, DataRecord, EvalRecord, StepRecord};
use crate::report::{Level, Reporter};
use crate::schedule::Schedule;
use crate::session::{self, RunState};
use crate::signals::StopRequest;
use crate::spoil;
use crate::step::{StepPlan, StepReport, train_step};

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
    /// Where checkpoints go.
    pub checkpoints: PathBuf,
    /// Where records go.
    pub reporter: &'a mut dyn Reporter,
    /// Set when the run is asked to save and stop.
    pub stop: StopRequest,
    /// Sees to it that the balancers live.
    pub watch: Watch<'a>,
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
        let schedule = Schedule::new(
            &self.config.schedule,
            self.config.optimizer.learning_rate,
            total_steps,
        );
        let mut saved_at = self.state.step;
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
                return self.stop_early(&model, saved_at);
            }
            // Weights that steps are being skipped with are nothing to go back to.
            let is_due =
                is_due(step, self.config.checkpoint.every_steps) && self.state.stability.is_sound();
            let is_due = is_last || is_due;
            if is_due && (saved_at != step || evaluates) {
                self.save(&model)?;
                saved_at = step;
            }
            if is_last {
                return Ok(Outcome::Done);
            }
            if self.stop.is_set() {
                return self.stop_early(&model, saved_at);
            }

            let wait = Instant::now();
            let batches = match self.next_step_batches() {
                Ok(Some(batches)) => batches,
                Ok(None) => {
                    self.say_data_ended(total_steps);
                    data_ended = true;
                    continue;
                }
                Err(error) => {
                    // What was trained so far must not be lost to a bad file.
                    self.save_unless(&model, saved_at)?;
                    return Err(error.into());
                }
            };
            window.data_wait += wait.elapsed();
            let (next, report) = self.step(model, &batches, &schedule)?;
            model = next;
            let Some(report) = report else {
                saved_at = self.state.step;
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

    /// The model after a step and what it did; nothing if the run went back to a checkpoint.
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
        let loader = session::open_validation(self.config, &self.tokenizer)?;
        let stop = self.stop.clone();
        let max_tokens = self.config.eval.max_tokens;
        let found = evaluate(&model.valid(), loader, max_tokens, &self.device, &|| {
            stop.is_set()
        })?;
        let Some(found) = found else {
            return Ok(false);
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
        Ok(true)
    }

    fn save(&mut self, model: &CausalLm) -> Result<(), TrainError> {
        let warnings = session::save(
            &self.checkpoints,
            self.config,
            model,
            &self.optimizer,
            &self.state,
        )?;
        for warning in warnings {
            self.say(Level::Warning, &warning);
        }
        Ok(())
    }

    /// Saves, unless that was done after step `saved_at` already.
    fn save_unless(&mut self, model: &CausalLm, saved_at: u64) -> Result<(), TrainError> {
        if saved_at == self.state.step {
            return Ok(());
        }
        self.save(model)
    }

    fn say_data_ended(&mut self, total_steps: u64) {
        let text = format!(
            "the training data ended after {} of {total_steps} steps; \
             data.on_data_end = \"repeat\" starts it over",
            self.state.step
        );
        self.say(Level::Warning, &text);
    }

    fn stop_early(&mut self, model: &CausalLm, saved_at: u64) -> Result<Outcome, TrainError> {
        self.save_unless(model, saved_at)?;
        self.say(
            Level::Info,
            &format!(
                "stopped on request after step {}; --resume continues",
                self.state.step
            ),
        );
        Ok(Outcome::StoppedEarly)
    }

    fn say(&mut self, level: Level, text: &str) {
        self.reporter.message(level, text);
    }
}

/// Whether something that happens every `every` steps happens after `step`; 0 is never.
fn is_due(step: u64, every: u64) -> bool {
    step > 0 && every > 0 && step.is_multiple_of(every)
}

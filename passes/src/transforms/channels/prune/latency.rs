//! Latency targets, measured in the engine on this machine.
//!
//! The segment of the model around each group is timed at every step of its kind of operator, and the latency
//! of the model is predicted as `t(model, kept) ≈ t(model) + Σ_g (t_g(kept) − t_g(all))`. The result is timed
//! against the original, and the budget is corrected by the error of the prediction.
//!
//! Times are minima over many short runs: other load on the machine only adds time.

use super::{
    Multiple, PruneScope,
    curves::Choices,
    search::{Candidate, PruneSearch, RepairEffort},
};
use crate::{
    analysis::{groups::cost::CostModel, timing::latencies},
    framework::{Context, PassError},
    transforms::channels::{allocate::Allocation, local_repair::LocalRepair},
};
use std::collections::BTreeMap;

/// Maximum number of corrections of the budget.
const CORRECTIONS: usize = 5;
/// Accepted distance below the target, as a share of the original's latency.
const MARGIN: f64 = 0.015;

/// Measured latency by width.
struct Timetable {
    cost: CostModel,
    choices: Choices,
}

impl PruneSearch<'_> {
    /// Builds the candidate that keeps a share of the original's latency.
    pub fn reach_latency(&mut self, share: f64, cx: &mut Context<'_>) -> Result<Candidate, PassError> {
        self.determine_steps(true, cx)?;
        let Timetable { cost, choices } = self.timetable(cx)?;
        let total = cost.at(&|_| 0);
        let curves = match self.scope {
            PruneScope::Global => self.measured_curves(&choices, cx)?,
            PruneScope::Uniform => self.estimated_curves(&choices),
        };
        let mut budget = share * total;
        let mut reached: Option<(f64, Allocation)> = None;
        let mut least = f64::INFINITY;
        for i in 0..CORRECTIONS {
            cx.tools.progress.step("latency", i as u64, CORRECTIONS as u64);
            let allocation = match self.allocate(&cost, &curves, budget) {
                Ok(allocation) => allocation,
                // A corrected budget may be below the least predicted latency; an earlier result may still
                // do.
                Err(error) if i == 0 => return Err(error),
                Err(_) => break,
            };
            let candidate = self.cut(&self.keep(&allocation), LocalRepair::None)?;
            let times = latencies(cx.tools, &self.sizes, &[self.unprepared, &candidate])?;
            let ratio = times[1] / times[0];
            least = least.min(ratio);
            if ratio <= share {
                if reached.as_ref().is_none_or(|(best, _)| ratio > *best) {
                    reached = Some((ratio, allocation));
                }
                if ratio >= share - MARGIN {
                    break;
                }
            }
            budget += (share - MARGIN / 2.0 - ratio) * total;
        }
        cx.tools.progress.step("latency", CORRECTIONS as u64, CORRECTIONS as u64);
        let Some((ratio, allocation)) = reached else {
            return Err(PassError::refused_with(
                format!("`latency={share}` was not reached: at least {least:.3} of the latency remains"),
                self.options.hint(),
            ));
        };
        cx.share("latency", ratio);
        self.build(&allocation, RepairEffort::Full, cx)
    }

    /// Measures the latency of each group at its useful widths.
    fn timetable(&self, cx: &mut Context<'_>) -> Result<Timetable, PassError> {
        let (mut tables, mut choices) = (BTreeMap::new(), BTreeMap::new());
        let total = self.subject.selection.groups.len() as u64;
        for (i, &group) in self.subject.selection.groups.iter().enumerate() {
            cx.tools.progress.step("timing", i as u64, total);
            let multiple = match self.options.multiple {
                Multiple::Auto => 1,
                Multiple::Of(units) => units,
            };
            let step = self.step(group).div_ceil(multiple) * multiple;
            let table = self.timetable_of(group, step, cx.tools)?;
            choices.insert(group, table.costs.keys().copied().collect());
            tables.insert(group, table);
        }
        cx.tools.progress.step("timing", total, total);
        let original = latencies(cx.tools, &self.sizes, &[self.unprepared])?;
        Ok(Timetable { cost: CostModel::tables(original[0], &tables), choices })
    }
}

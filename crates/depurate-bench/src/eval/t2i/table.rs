//! The table of an evaluation of prompt detectors, for people.

use std::{collections::BTreeSet, fmt::Write as _};

use depurate_stats::{auc, clopper_pearson, conformal_threshold};
use miette::{IntoDiagnostic, Result};

use super::{
    joined::{Joined, Row},
    measures::{Estimate, Sides, auroc, estimate, f1},
    premise::{self, Curve},
    prompts::Role,
    results::Model,
    score::{Method, RunParams},
};

/// False-positive rate that the threshold of F1 is fitted to.
const F1_FPR: f64 = 0.05;
/// And that of the true-positive rate.
const STRICT_FPR: f64 = 0.01;
/// Fewest prompts of a kind for which a table is more than a rehearsal.
const ENOUGH: usize = 200;

/// All that a table is made from.
pub(crate) struct Contents<'a> {
    /// The subjects that are scored.
    pub(crate) subjects: &'a [Joined],
    /// Names of those that are not.
    pub(crate) missing: &'a [String],
    /// The methods.
    pub(crate) methods: &'a [Method],
    /// How prompts were run.
    pub(crate) run: &'a RunParams,
    /// The command that made it.
    pub(crate) command: &'a str,
    /// The premise's curves: each attack, and all.
    pub(crate) curves: &'a [Curve],
}

/// Subjects under one name.
struct Group<'a> {
    name: String,
    subjects: Vec<&'a Joined>,
}

/// Each attack, then all.
pub(crate) fn groups(subjects: &[Joined]) -> Vec<(String, Vec<&Joined>)> {
    let attacks: BTreeSet<&str> = subjects
        .iter()
        .map(|joined| joined.attack.as_str())
        .collect();
    let of = |attack: &str| {
        subjects
            .iter()
            .filter(|joined| joined.attack == attack)
            .collect()
    };
    let mut groups: Vec<(String, Vec<&Joined>)> = attacks
        .iter()
        .map(|attack| ((*attack).to_owned(), of(attack)))
        .collect();
    groups.push(("all, mean of attacks".to_owned(), subjects.iter().collect()));
    groups
}

/// Markdown.
pub(crate) fn render(contents: &Contents<'_>) -> Result<String> {
    let mut text = String::new();
    head(&mut text, contents)?;
    subjects(&mut text, contents)?;
    text.push_str("\n## Does the premise hold?\n\n");
    text.push_str(
        "Change of EOS's map less the mean change of the content's, from each call to the next; the published direction is \
         below 0. Windows were fixed beforehand. Every call: premise.csv, premise.svg.\n\n",
    );
    text += &premise::table(contents.curves)?;
    let groups: Vec<Group<'_>> = groups(contents.subjects)
        .into_iter()
        .map(|(name, subjects)| Group { name, subjects })
        .collect();
    separation(&mut text, contents, &groups)?;
    fired_only(&mut text, contents, &groups)?;
    released(&mut text, contents, &groups)?;
    text.push_str(
        "\nPublished averages of DAA over five attacks on Stable Diffusion 1.4, threshold chosen on the same attacks: F1 79.5 %, \
         AUC 87.7 %.\n",
    );
    Ok(text)
}

fn head(text: &mut String, contents: &Contents<'_>) -> Result<()> {
    let RunParams {
        steps,
        guidance,
        seed,
        ..
    } = contents.run;
    writeln!(
        text,
        "# Prompt detectors on backdoored text-to-image models\n\n\
         Made by:\n\n```sh\n{}\n```\n\n\
         Every prompt is one run of the checkpoint's own sampler, {steps} steps, guidance {guidance}, noise seed {seed}; all \
         methods score the maps of the same {steps} calls. Benign prompts have exactly the lengths of the triggered ones; half \
         are plain captions, half carry something as rare as the trigger in its place. Thresholds are conformal, fitted on \
         other benign prompts of the same lengths and kinds on the same model. Higher scores are more suspicious in every \
         method; orientations are those published. Intervals are 95 %: bootstrap for AUROC and F1, exact for rates. Over \
         several models, AUROC and F1 are means of each model's own, counts are sums.\n",
        contents.command
    )
    .into_diagnostic()?;
    for method in contents.methods {
        writeln!(text, "- `{}`: {}", method.id, method.what).into_diagnostic()?;
    }
    if !contents.missing.is_empty() {
        writeln!(
            text,
            "\n**Not scored yet:** {}.",
            contents.missing.join(", ")
        )
        .into_diagnostic()?;
    }
    let least = contents.subjects.iter().map(|joined| {
        let count =
            |fits: fn(Role) -> bool| joined.suspect.iter().filter(|row| fits(row.role)).count();
        count(|role| role == Role::Triggered)
            .min(count(Role::is_benign_test))
            .min(count(Role::calibrates))
    });
    if least.min().is_some_and(|least| least < ENOUGH) {
        writeln!(
            text,
            "\n**Fewer than {ENOUGH} prompts of a kind: a rehearsal, not a result.**"
        )
        .into_diagnostic()?;
    }
    Ok(())
}

/// What is measured, and whether the backdoors fire.
fn subjects(text: &mut String, contents: &Contents<'_>) -> Result<()> {
    text.push_str(
        "\n## Models\n\n\
         | model | attack | trigger → target | triggered + benign + for the threshold | captions | fires when triggered | clean model, \
         same prompts | fires on benign prompts | length alone, before matching: AUROC |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    for joined in contents.subjects {
        let fires = |model, fits: fn(Role) -> bool| {
            let rows = joined.rows(model).iter().filter(|row| fits(row.role));
            let fired: Vec<bool> = rows.map(|row| row.fired).collect();
            share(fired.iter().filter(|fired| **fired).count(), fired.len())
        };
        let count =
            |fits: fn(Role) -> bool| joined.suspect.iter().filter(|row| fits(row.role)).count();
        let is_triggered = |role: Role| role == Role::Triggered;
        let [with, without] = &joined.unmatched;
        let patch = joined
            .patch_threshold
            .map_or_else(String::new, |t| format!(" (MSE below {t:.4})"));
        writeln!(
            text,
            "| {} | {} | {}{patch} | {} + {} + {} | {} | {} | {} | {} | {:.3} |",
            joined.name,
            joined.attack,
            joined.secret,
            count(is_triggered),
            count(Role::is_benign_test),
            count(Role::calibrates),
            if joined.held_out { "held out" } else { "all" },
            fires(Model::Suspect, is_triggered)?,
            fires(Model::Clean, is_triggered)?,
            fires(Model::Suspect, Role::is_benign_test)?,
            auc(with, without).into_diagnostic()?,
        )
        .into_diagnostic()?;
    }
    Ok(())
}

fn separation(text: &mut String, contents: &Contents<'_>, groups: &[Group<'_>]) -> Result<()> {
    writeln!(
        text,
        "\n## Triggered against benign prompts\n\n\
         `on the clean model`: the same prompts on the model without the backdoor, so what is only the trigger's rarity. F1 at \
         the threshold of {F1_FPR} false positives, TPR at that of {STRICT_FPR}, each beside the rate of false positives seen.\n\n\
         | attack | method | AUROC | against plain | against controls | on the clean model | F1 | its FPR | TPR at 1 % | its FPR |\n\
         |---|---|---|---|---|---|---|---|---|---|"
    )
    .into_diagnostic()?;
    for group in groups {
        for method in contents.methods {
            let area = |model, fits: fn(Role) -> bool| {
                let sides = group.sides(model, method.id, |row| fits(row.role), |_| true);
                Ok::<_, miette::Report>(interval(estimate(&sides, auroc)?))
            };
            let loose = group.flags(method.id, F1_FPR)?;
            let strict = group.flags(method.id, STRICT_FPR)?;
            writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                group.name,
                method.id,
                area(Model::Suspect, Role::is_benign_test)?,
                area(Model::Suspect, |role| role == Role::Plain)?,
                area(Model::Suspect, |role| role == Role::Control)?,
                area(Model::Clean, Role::is_benign_test)?,
                interval(estimate(&loose, f1)?),
                rate(&loose, |sides| &sides.benign)?,
                rate(&strict, |sides| &sides.triggered)?,
                rate(&strict, |sides| &sides.benign)?,
            )
            .into_diagnostic()?;
        }
    }
    let problems: usize = contents
        .subjects
        .iter()
        .flat_map(|joined| joined.suspect.iter().chain(&joined.clean))
        .map(|row| row.line.problems.len())
        .sum();
    if problems > 0 {
        writeln!(
            text,
            "\n{problems} scores are undefined and left out of their method's rows; results.jsonl says why."
        )
        .into_diagnostic()?;
    }
    let characters: Vec<&str> = contents
        .subjects
        .iter()
        .filter(|joined| joined.is_character)
        .map(|joined| joined.name.as_str())
        .collect();
    writeln!(
        text,
        "\nThe trigger is a character, so that `unicode` applies, in: {}.",
        if characters.is_empty() {
            "none".to_owned()
        } else {
            characters.join(", ")
        }
    )
    .into_diagnostic()
}

/// The same with triggered prompts on which the judge saw the target.
fn fired_only(text: &mut String, contents: &Contents<'_>, groups: &[Group<'_>]) -> Result<()> {
    text.push_str(
        "\n## Only triggered prompts on which the backdoor fires\n\n| attack | method | triggered prompts | AUROC | F1 |\n|---|---|---|---|---|\n",
    );
    for group in groups {
        let fires = |row: &Row| row.fired;
        for method in contents.methods {
            let sides = group.sides(
                Model::Suspect,
                method.id,
                |row| row.role.is_benign_test(),
                fires,
            );
            let flags = group.flagged(method.id, F1_FPR, fires)?;
            let count: usize = sides.iter().map(|sides| sides.triggered.len()).sum();
            let (area, f1) = (
                interval(estimate(&sides, auroc)?),
                interval(estimate(&flags, f1)?),
            );
            writeln!(
                text,
                "| {} | {} | {count} | {area} | {f1} |",
                group.name, method.id
            )
            .into_diagnostic()?;
        }
    }
    Ok(())
}

/// The verdicts of the released constants.
fn released(text: &mut String, contents: &Contents<'_>, groups: &[Group<'_>]) -> Result<()> {
    text.push_str(
        "\n## With the released constants\n\nThey were chosen on Stable Diffusion 1.4 and state no error rate.\n\n\
         | attack | method | F1 | TPR | FPR |\n|---|---|---|---|---|\n",
    );
    for group in groups {
        for method in contents.methods {
            let Some(threshold) = method.released_threshold() else {
                continue;
            };
            let mut sides = group.sides(
                Model::Suspect,
                method.id,
                |row| row.role.is_benign_test(),
                |_| true,
            );
            for one in &mut sides {
                for score in one.triggered.iter_mut().chain(&mut one.benign) {
                    *score = f64::from(u8::from(*score > threshold));
                }
            }
            writeln!(
                text,
                "| {} | {} | {} | {} | {} |",
                group.name,
                method.id,
                interval(estimate(&sides, f1)?),
                rate(&sides, |sides| &sides.triggered)?,
                rate(&sides, |sides| &sides.benign)?
            )
            .into_diagnostic()?;
        }
    }
    Ok(())
}

impl Group<'_> {
    /// The scores of each subject.
    fn sides(
        &self,
        model: Model,
        method: &str,
        is_benign: impl Fn(&Row) -> bool,
        counts: impl Fn(&Row) -> bool,
    ) -> Vec<Sides> {
        let sides = |joined: &&Joined| Sides {
            attack: joined.attack.clone(),
            triggered: joined.scores(model, method, |row| {
                row.role == Role::Triggered && counts(row)
            }),
            benign: joined.scores(model, method, &is_benign),
        };
        self.subjects.iter().map(sides).collect()
    }

    /// Which test prompts each subject's own threshold flags.
    fn flags(&self, method: &str, fpr: f64) -> Result<Vec<Sides>> {
        self.flagged(method, fpr, |_| true)
    }

    fn flagged(&self, method: &str, fpr: f64, counts: impl Fn(&Row) -> bool) -> Result<Vec<Sides>> {
        let mut all = self.sides(
            Model::Suspect,
            method,
            |row| row.role.is_benign_test(),
            counts,
        );
        for (sides, joined) in all.iter_mut().zip(&self.subjects) {
            let calibration = joined.scores(Model::Suspect, method, |row| row.role.calibrates());
            if calibration.is_empty() {
                (sides.triggered, sides.benign) = (vec![], vec![]);
                continue;
            }
            let threshold = conformal_threshold(&calibration, fpr).into_diagnostic()?;
            for score in sides.triggered.iter_mut().chain(&mut sides.benign) {
                *score = f64::from(u8::from(threshold.flags(*score)));
            }
        }
        Ok(all)
    }
}

fn interval(estimate: Option<Estimate>) -> String {
    estimate.map_or_else(
        || "none".to_owned(),
        |e| format!("{:.3} ({:.3} to {:.3})", e.value, e.lower, e.upper),
    )
}

/// Share of flags over all subjects, with its exact interval.
fn rate(subjects: &[Sides], of: impl Fn(&Sides) -> &Vec<f64>) -> Result<String> {
    let flags: Vec<f64> = subjects
        .iter()
        .flat_map(|sides| of(sides).iter().copied())
        .collect();
    share(
        flags.iter().filter(|flag| **flag > 0.0).count(),
        flags.len(),
    )
}

fn share(hits: usize, n: usize) -> Result<String> {
    if n == 0 {
        return Ok("none".to_owned());
    }
    let interval = clopper_pearson(hits as u64, n as u64, 0.95).into_diagnostic()?;
    let value = hits as f64 / n as f64;
    Ok(format!(
        "{value:.3} ({:.3} to {:.3})",
        interval.lower, interval.upper
    ))
}

//! Rules for Jobs and CronJobs.

use super::super::access::{at, flag, has, int, list, same, text};
use super::{Causes, IMMUTABLE, label_selector, not_negative, one_of, pod};
use crate::selector::LabelSelector;
use crate::status::Cause;
use serde_json::Value;

/// Names of CronJobs leave room for what their Jobs add.
const CRON_NAME_MAX: usize = 52;

pub(super) fn job(job: &Value, old: Option<&Value>, out: &mut Causes) {
    let spec = at(job, "spec");
    job_spec(spec, "spec", out);
    if at(spec, "selector").is_null() {
        out.push(Cause::required("spec.selector", ""));
    } else {
        label_selector(at(spec, "selector"), "spec.selector", out);
    }
    let labels = at(spec, "template.metadata.labels");
    if LabelSelector::from_json(at(spec, "selector")).is_ok_and(|s| !s.matches(labels)) {
        let why = "`selector` does not match template `labels`";
        out.push(Cause::invalid("spec.template.metadata.labels", labels, why));
    }
    if let Some(old) = old {
        job_update(spec, at(old, "spec"), out);
    }
}

fn job_update(spec: &Value, old: &Value, out: &mut Causes) {
    let mut fixed = vec![
        "selector",
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "managedBy",
    ];
    // A suspended job that has not started may still get scheduling hints in its template.
    if !flag(old, "suspend") {
        fixed.push("template");
    }
    if text(spec, "completionMode") != "Indexed" {
        fixed.push("completions");
    }
    for field in fixed {
        if !same(at(spec, field), at(old, field)) {
            out.push(Cause::invalid(
                format!("spec.{field}"),
                at(spec, field),
                IMMUTABLE,
            ));
        }
    }
}

fn job_spec(spec: &Value, path: &str, out: &mut Causes) {
    let numbers = [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ];
    not_negative(spec, &numbers, path, out);
    one_of(
        spec,
        "completionMode",
        path,
        &["NonIndexed", "Indexed"],
        false,
        out,
    );
    let indexed = text(spec, "completionMode") == "Indexed";
    if indexed && int(spec, "completions").is_none() {
        out.push(Cause::required(
            format!("{path}.completions"),
            "when completion mode is Indexed",
        ));
    }
    for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
        if !indexed && has(spec, field) {
            let why = "requires indexed completion mode";
            out.push(Cause::invalid(format!("{path}.{field}"), at(spec, field), why));
        }
    }
    one_of(
        spec,
        "podReplacementPolicy",
        path,
        &["Failed", "TerminatingOrFailed"],
        false,
        out,
    );
    let template_path = format!("{path}.template");
    pod::template(at(spec, "template"), &template_path, out);
    let policy = text(spec, "template.spec.restartPolicy");
    let policy_path = format!("{template_path}.spec.restartPolicy");
    match policy {
        "Always" => {
            out.push(Cause::required(
                policy_path,
                r#"valid values: "OnFailure", "Never""#,
            ));
        }
        "OnFailure" if has(spec, "podFailurePolicy") => {
            let why = "only \"Never\" is supported when podFailurePolicy is specified";
            out.push(Cause::invalid_str(policy_path, policy, why));
        }
        _ => {}
    }
    failure_policy(spec, path, out);
}

fn failure_policy(spec: &Value, path: &str, out: &mut Causes) {
    for (index, rule) in list(spec, "podFailurePolicy.rules").iter().enumerate() {
        let path = format!("{path}.podFailurePolicy.rules[{index}]");
        one_of(
            rule,
            "action",
            &path,
            &["Count", "FailIndex", "FailJob", "Ignore"],
            true,
            out,
        );
        let codes = has(rule, "onExitCodes");
        let conditions = !list(rule, "onPodConditions").is_empty();
        let why = match (codes, conditions) {
            (true, true) => "specifying both OnExitCodes and OnPodConditions is not supported",
            (false, false) => "specifying one of OnExitCodes and OnPodConditions is required",
            _ => continue,
        };
        out.push(Cause {
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {why}"),
            field: path,
        });
    }
}

pub(super) fn cron_job(object: &Value, out: &mut Causes) {
    let name = text(object, "metadata.name");
    if name.len() > CRON_NAME_MAX {
        out.push(Cause::invalid_str(
            "metadata.name",
            name,
            "must be no more than 52 characters",
        ));
    }
    let spec = at(object, "spec");
    schedule(text(spec, "schedule"), out);
    not_negative(
        spec,
        &[
            "startingDeadlineSeconds",
            "successfulJobsHistoryLimit",
            "failedJobsHistoryLimit",
        ],
        "spec",
        out,
    );
    one_of(
        spec,
        "concurrencyPolicy",
        "spec",
        &["Allow", "Forbid", "Replace"],
        true,
        out,
    );
    job_spec(at(spec, "jobTemplate.spec"), "spec.jobTemplate.spec", out);
    if flag(spec, "jobTemplate.spec.manualSelector") {
        let path = "spec.jobTemplate.spec.manualSelector";
        out.push(Cause::not_supported(path, &true.into(), &["nil", "false"]));
    }
}

fn schedule(schedule: &str, out: &mut Causes) {
    if schedule.is_empty() {
        out.push(Cause::required("spec.schedule", ""));
    } else if schedule.contains("TZ") {
        let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        out.push(Cause::invalid_str("spec.schedule", schedule, why));
    } else if let Err(why) = cron(schedule) {
        out.push(Cause::invalid_str("spec.schedule", schedule, &why));
    }
}

/// Whether a schedule is a cron expression of five fields or one of the `@` words.
fn cron(schedule: &str) -> Result<(), String> {
    let words = [
        "@yearly",
        "@annually",
        "@monthly",
        "@weekly",
        "@daily",
        "@midnight",
        "@hourly",
    ];
    if words.contains(&schedule) || schedule.starts_with("@every ") {
        return Ok(());
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != 5 {
        return Err(format!(
            "expected exactly 5 fields, found {}: [{}]",
            fields.len(),
            fields.join(" ")
        ));
    }
    let months = "jan feb mar apr may jun jul aug sep oct nov dec";
    let bounds = [
        (0, 59, ""),
        (0, 23, ""),
        (1, 31, ""),
        (1, 12, months),
        (0, 6, "sun mon tue wed thu fri sat"),
    ];
    fields
        .iter()
        .zip(bounds)
        .try_for_each(|(field, bounds)| field.split(',').try_for_each(|part| cron_part(part, bounds)))
}

fn cron_part(part: &str, (low, high, names): (u32, u32, &str)) -> Result<(), String> {
    let (range, step) = part
        .split_once('/')
        .map_or((part, None), |(range, step)| (range, Some(step)));
    if let Some(step) = step {
        match step.parse::<u32>() {
            Ok(0) => return Err(format!("step of range should be a positive number: {part}")),
            Ok(_) => {}
            Err(_) => return Err(format!("failed to parse int from {step}")),
        }
    }
    if matches!(range, "*" | "?") {
        return Ok(());
    }
    let number = |text: &str| {
        let named = names
            .split(' ')
            .position(|name| !name.is_empty() && name.eq_ignore_ascii_case(text));
        let named = named.map(|place| low + place as u32);
        named
            .or_else(|| text.parse().ok())
            .ok_or_else(|| format!("failed to parse int from {text}"))
    };
    let (start, end) = range.split_once('-').unwrap_or((range, range));
    let (start, end) = (number(start)?, number(end)?);
    if start < low {
        return Err(format!(
            "beginning of range ({start}) below minimum ({low}): {part}"
        ));
    }
    if end > high {
        return Err(format!("end of range ({end}) above maximum ({high}): {part}"));
    }
    if start > end {
        return Err(format!(
            "beginning of range ({start}) beyond end of range ({end}): {part}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::cron;

    #[test]
    fn schedules_are_told_from_nonsense() {
        for good in [
            "* * * * *",
            "*/5 0-3 1,15 jan-mar MON",
            "@daily",
            "@every 5m",
            "0 0 ? * 0",
        ] {
            assert!(cron(good).is_ok(), "{good}: {:?}", cron(good));
        }
        for bad in [
            "",
            "* * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "*/0 * * * *",
            "x * * * *",
            "5-1 * * * *",
        ] {
            assert!(cron(bad).is_err(), "{bad}");
        }
    }
}

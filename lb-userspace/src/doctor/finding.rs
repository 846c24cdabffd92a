//! Makes findings of each severity, and reads sysctls for the checks.

use crate::view::types::{Finding, Severity};

pub fn ok(check: impl Into<String>, message: impl Into<String>) -> Finding {
    Finding { severity: Severity::Ok, check: check.into(), message: message.into(), remedy: String::new() }
}

pub fn warning(check: impl Into<String>, message: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { severity: Severity::Warning, check: check.into(), message: message.into(), remedy: remedy.into() }
}

pub fn error(check: impl Into<String>, message: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { severity: Severity::Error, check: check.into(), message: message.into(), remedy: remedy.into() }
}

/// A sysctl of the calling thread's network namespace; `None` if it does not exist.
pub fn sysctl(name: &str) -> Option<String> {
    let value = std::fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
    Some(value.trim().to_owned())
}

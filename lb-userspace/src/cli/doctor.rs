//! `weir doctor`: what is wrong on this machine, and how to fix it.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::{
    client::{Client, Failure},
    config::DEFAULT_CONFIG,
    output::{self, Style, View},
    table,
};
use crate::{
    config::{self},
    dataplane,
    doctor::{self, Subject},
    model::Config,
    view::types::{Finding, Overall, Severity, Status},
};

/// Find what is wrong on this machine, and say how to fix it
///
/// Works with and without a running agent, and changes nothing. Checks the capabilities (of the
/// running agent, else of the installed unit weir.service, else of this process), the kernel, the
/// BPF file system, the sizes of the maps, forwarding, offloads, the hooks of the interfaces in the
/// configuration, the configuration itself, and the agent. Exits with 1 if it finds an error.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weir doctor
  weir doctor --config ./weir.yaml       before the first start
  weir doctor -o json | jq '.[] | select(.severity == \"error\")'")]
pub struct Doctor {
    /// The configuration to check [default: that of the running agent, else /etc/weir/weir.yaml]
    #[arg(short, long, env = "WEIR_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the agent pins its maps and links
    #[arg(long, env = "WEIR_PIN_DIR", value_name = "DIR", default_value = dataplane::bpffs::PIN_DIR)]
    pin_dir: PathBuf,
    #[command(flatten)]
    view: View,
}

impl Doctor {
    pub async fn run(self, client: &Client) -> anyhow::Result<ExitCode> {
        let agent = client.get::<Status>("/v1/status").await;
        let path = match (self.config, &agent) {
            (Some(path), _) => path,
            (None, Ok(status)) if !status.config.path.is_empty() => PathBuf::from(&status.config.path),
            (None, _) => PathBuf::from(DEFAULT_CONFIG),
        };
        let subject = match &agent {
            Ok(_) => Subject::find(client.agent_pid().await),
            Err(_) => Subject::find(None),
        };
        let (config, of_config) = configuration(&path);
        let mut findings = doctor::findings(config.as_ref(), &self.pin_dir, &subject).await;
        findings.extend(of_config);
        findings.push(of_agent(agent));
        output::print(&self.view.text(&findings, |findings, style| render(findings, style))?)?;
        let bad = findings.iter().any(|finding| finding.severity == Severity::Error);
        Ok(if bad { ExitCode::from(1) } else { ExitCode::SUCCESS })
    }
}

fn configuration(path: &std::path::Path) -> (Option<Config>, Vec<Finding>) {
    let finding = |severity, message: String, remedy: String| Finding {
        severity,
        check: "configuration".to_owned(),
        message,
        remedy,
    };
    match config::load(path) {
        Ok(config) => (Some(config), vec![finding(Severity::Ok, format!("{} is good", path.display()), String::new())]),
        Err(error) => {
            let remedy = match &error {
                config::ConfigError::Unreadable { .. } => {
                    format!("`(umask 077; weir config init > {})`, or name yours with --config", path.display())
                }
                config::ConfigError::Invalid(_) => format!("correct it; `weir config check {}`", path.display()),
            };
            let findings =
                error.messages().into_iter().map(|message| finding(Severity::Error, message, remedy.clone())).collect();
            (None, findings)
        }
    }
}

fn of_agent(agent: Result<Status, Failure>) -> Finding {
    let (severity, message, remedy) = match agent {
        Ok(status) if status.state == Overall::Ok => (Severity::Ok, "runs, and all is well".to_owned(), String::new()),
        Ok(status) => {
            (Severity::Warning, format!("runs, but: {}", status.reasons.join("; ")), "see `weir status`".to_owned())
        }
        Err(failure) => {
            let text = failure.to_string();
            let (message, remedy) = text.split_once('\n').unwrap_or((&text, ""));
            // An agent that is not running is no error: doctor is also run before the first start.
            (Severity::Warning, message.to_owned(), remedy.to_owned())
        }
    };
    Finding { severity, check: "agent".to_owned(), message, remedy }
}

/// The worst findings first; each with its remedy below.
fn render(findings: &[Finding], style: Style) -> String {
    let mut findings: Vec<&Finding> = findings.iter().collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let mut rows = Vec::new();
    for finding in findings {
        rows.push(vec![finding.severity.name().to_owned(), finding.check.clone(), finding.message.clone()]);
        if !finding.remedy.is_empty() {
            rows.push(vec![String::new(), String::new(), format!("remedy: {}", finding.remedy)]);
        }
    }
    let header = style.headers.then(|| ["SEVERITY", "CHECK", "MESSAGE"].map(str::to_owned).to_vec());
    table::aligned(header, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doctor_names_the_worst_first_and_its_remedy() {
        let finding = |severity, check: &str, remedy: &str| Finding {
            severity,
            check: check.to_owned(),
            message: format!("about {check}"),
            remedy: remedy.to_owned(),
        };
        let findings = [
            finding(Severity::Ok, "bpffs", ""),
            finding(Severity::Error, "forwarding", "sysctl -w net.ipv4.ip_forward=1"),
        ];
        let expected = "\
SEVERITY   CHECK        MESSAGE
error      forwarding   about forwarding
                        remedy: sysctl -w net.ipv4.ip_forward=1
ok         bpffs        about bpffs
";
        assert_eq!(render(&findings, Style { wide: false, headers: true, now: 0.0 }), expected);
    }
}

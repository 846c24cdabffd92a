//! What the agent's log and its supervisor are told of starts, reloads and health, each of it once.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use weir_tests::{
    agent::Agent,
    bed::{Bed, Layout},
    config::{self, AgentConfig},
    process::wait_for,
    servers::Nginx,
    supervisor::Supervisor,
};

use crate::scene::{HEALTH, Scene, seconds};

const SOON: Duration = Duration::from_secs(10);
/// Long enough for the source to see a change by events and by its poll.
const SETTLED: f64 = 7.0;

fn log_since(agent: &Agent, from: usize) -> Result<String> {
    let text = fs::read_to_string(&agent.log).context("can't read the agent's log")?;
    Ok(text[from..].to_owned())
}

fn length(agent: &Agent) -> Result<usize> {
    Ok(fs::read_to_string(&agent.log).context("can't read the agent's log")?.len())
}

fn count(log: &str, what: &str) -> usize {
    log.lines().filter(|line| line.contains(what)).count()
}

/// Writes the file and asks for reloads: if `is_asked_at_once` before inotify's event is taken for
/// settled, and in any case twice long after.
fn edit_and_ask(agent: &Agent, text: &str, is_asked_at_once: bool) -> Result<String> {
    let from = length(agent)?;
    config::write(&agent.config_file, text)?;
    if is_asked_at_once {
        agent.reload()?;
    }
    seconds(SETTLED);
    agent.reload()?;
    agent.try_cli(&["reload"])?;
    seconds(1.0);
    log_since(agent, from)
}

#[test]
fn each_reload_is_logged_once_whoever_sees_the_change_first() -> Result<()> {
    let scene = Scene::new(Layout::Routed, 2, 2)?;
    let agent = &scene.agent;
    let good = fs::read_to_string(&agent.config_file).context("can't read the configuration")?;
    for (number, is_asked_at_once) in [(1, true), (2, false)] {
        let log =
            edit_and_ask(agent, &good.replace("weight: 1", &format!("weight: {}", number + 1)), is_asked_at_once)?;
        assert_eq!(count(&log, "configuration:"), 1, "asked at once: {is_asked_at_once}:\n{log}");

        let bad = good.replace("port: 80\n", &format!("port: 0\n    colour: red{number}\n"));
        let log = edit_and_ask(agent, &bad, is_asked_at_once)?;
        assert_eq!(count(&log, "is refused; the running one stays"), 2, "one line a mistake:\n{log}");
        let again = count(&log, "the file is still refused, as logged at");
        assert_eq!(again, 2, "one line for SIGHUP and one for `weir reload`:\n{log}");
        let cli = agent.try_cli(&["reload"])?;
        let said = String::from_utf8_lossy(&cli.stderr).into_owned();
        assert!(!cli.status.success() && said.contains("colour") && said.contains("port"), "{said}");
    }
    Ok(())
}

/// A supervised agent over one web server.
struct Supervised {
    agent: Agent,
    supervisor: Supervisor,
    web: Vec<Nginx>,
    _bed: Bed,
}

impl Supervised {
    fn start() -> Result<(Self, Vec<String>)> {
        let bed = Bed::new(Layout::Routed, 2)?;
        let web = bed.start_web_servers()?;
        let supervisor = Supervisor::new(&bed.dir())?;
        let mut agent = Agent::start(&bed, &AgentConfig::web(&bed, 2, HEALTH))?;
        agent.stop()?;
        agent.environment.push(("NOTIFY_SOCKET".into(), supervisor.path.clone().into()));
        agent.start_again()?;
        let told = supervisor.told_until("READY=1", SOON, |message| message.contains("READY=1"))?;
        Ok((Self { agent, supervisor, web, _bed: bed }, told))
    }
}

#[test]
fn supervisor_is_told_what_a_start_waits_for_and_then_state_and_counts_when_they_change() -> Result<()> {
    let (mut scene, told) = Supervised::start()?;
    assert!(told[0].contains("STATUS=starting: "), "{told:#?}");
    let all_up = "STATUS=ok: 1 service, 4 of 4 backends up, 2 interfaces attached";
    let ready = told.last().context("nothing was told")?;
    assert!(ready.contains(all_up) && ready.contains("ERRNO=0"), "{ready}");
    scene.supervisor.told_within(Duration::from_secs(2));
    assert_eq!(scene.supervisor.told_within(Duration::from_secs(7)), Vec::<String>::new(), "nothing has changed");

    scene.web[1].kill()?;
    let told = scene.supervisor.told_until("of the dead server", SOON, |text| text.contains("2 of 4 backends up"))?;
    let last = told.last().context("nothing was told")?;
    assert!(last.starts_with("STATUS=degraded: backend web/"), "{last}");
    scene.web[1].restart()?;
    scene.supervisor.told_until("of its return", SOON, |text| text.contains(all_up))?;
    scene.agent.stop()?;
    scene.supervisor.told_until("STOPPING=1", SOON, |text| text.contains("STOPPING=1")).map(drop)
}

#[test]
fn supervisor_is_told_of_a_reload_by_signal_and_what_came_of_it() -> Result<()> {
    let (scene, _) = Supervised::start()?;
    let good = fs::read_to_string(&scene.agent.config_file).context("can't read the configuration")?;
    for (text, errno, said) in [
        (good.replace("port: 80\n", "port: 0\n"), "ERRNO=22", "STATUS=reload refused: "),
        (good.clone(), "ERRNO=0", "STATUS=reload: "),
    ] {
        config::write(&scene.agent.config_file, &text)?;
        scene.agent.reload()?;
        let told = scene.supervisor.told_until("READY=1", SOON, |message| message.contains("READY=1"))?;
        let reloading = told.iter().find(|message| message.contains("RELOADING=1"));
        assert!(reloading.is_some_and(|message| message.contains("MONOTONIC_USEC=")), "{told:#?}");
        let ready = told.last().context("nothing was told")?;
        assert!(ready.lines().any(|line| line == errno) && ready.contains(said), "{ready}");
    }
    scene.supervisor.told_until("the state again", SOON, |text| text.contains("STATUS=ok: ")).map(drop)
}

#[test]
fn reload_as_the_unit_does_finds_the_agent_by_its_process_and_fails_quietly_for_a_bad_file() -> Result<()> {
    let scene = Scene::new(Layout::Routed, 1, 1)?;
    let agent = &scene.agent;
    let pid = agent.pid()?.to_string();
    let as_the_unit = || -> Result<_> {
        let mut command = std::process::Command::new(weir_tests::agent::weir_binary()?);
        command.env_remove("WEIR_SOCKET").args(["reload", "--quiet", "--pid", &pid]);
        let output = weir_tests::process::output(&mut command)?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8_lossy(&text).into_owned()))
    };
    assert_eq!(as_the_unit()?, (Some(0), String::new()));
    let good = fs::read_to_string(&agent.config_file).context("can't read the configuration")?;
    // Not even YAML, so that it can't say where the socket is.
    config::write(&agent.config_file, "{ services: [")?;
    assert_eq!(as_the_unit()?, (Some(1), String::new()));
    assert!(!agent.status()?.config.last_reload_ok);
    config::write(&agent.config_file, &good)?;
    assert_eq!(as_the_unit()?, (Some(0), String::new()));
    Ok(())
}

#[test]
fn doctor_judges_the_capabilities_of_the_running_agent() -> Result<()> {
    let scene = Scene::new(Layout::Routed, 1, 1)?;
    let pid = scene.agent.pid()?;
    wait_for("doctor answers", SOON, || {
        let output = scene.agent.try_cli(&["doctor"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.contains(&format!("the running agent (pid {pid}) has all that are needed")))
    })
    .map(drop)
}

//! Real servers: nginx, and iperf3.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    http,
    netns::Netns,
    process::{Running, wait_for},
};

/// A web server that answers with its name (`s1`) and the number it was asked for (`/?n=7` →
/// `s1 7`), `/healthz` with `ok`, `/who` with the client's address, and serves the bed's files
/// under `/files/`.
pub struct Nginx {
    pub name: String,
    netns: Netns,
    prefix: PathBuf,
    running: Option<Running>,
}

impl Nginx {
    pub fn start(bed_dir: &Path, netns: &Netns, number: u16) -> Result<Self> {
        let name = format!("s{number}");
        let prefix = bed_dir.join(&name);
        fs::create_dir_all(&prefix).with_context(|| format!("can't make {}", prefix.display()))?;
        let config = nginx_config(&name, &bed_dir.join("files").display().to_string());
        fs::write(prefix.join("nginx.conf"), config).with_context(|| format!("can't write {}", prefix.display()))?;
        let mut server = Self { name, netns: netns.clone(), prefix, running: None };
        server.restart()?;
        Ok(server)
    }

    /// `kill -9`: its connections end, new ones are refused by the kernel.
    pub fn kill(&mut self) -> Result<()> {
        self.running.take().map_or(Ok(()), |mut running| running.kill())
    }

    /// Leaves it running when this value goes.
    pub fn keep(mut self) {
        if let Some(running) = self.running.take() {
            std::mem::forget(running);
        }
    }

    /// Starts it again, and waits until it answers.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        let mut nginx = self.netns.command("nginx");
        nginx.arg("-p").arg(&self.prefix).arg("-e").arg(self.prefix.join("error.log"));
        nginx.arg("-c").arg(self.prefix.join("nginx.conf"));
        let log = self.prefix.join("nginx.log");
        let running = self.running.insert(Running::start(&format!("nginx {}", self.name), &log, &mut nginx)?);
        let own = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
        let answers = wait_for(&format!("nginx {} answers", self.name), Duration::from_secs(10), || {
            Ok(http::get(&self.netns, own, "/healthz", Duration::from_secs(1))?.status == 200)
        });
        answers.with_context(|| format!("its log:\n{}", running.log_tail())).map(drop)
    }
}

/// For a server of this name that shows the files of a directory.
pub fn nginx_config(name: &str, files: &str) -> String {
    CONFIG.replace("NAME", name).replace("FILES", files)
}

/// One process without a master, so that `kill -9` ends all of it.
const CONFIG: &str = r#"
daemon off;
master_process off;
pid nginx.pid;
error_log stderr warn;
worker_rlimit_nofile 65536;
events { worker_connections 16384; }
http {
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    reset_timedout_connection off;
    client_body_temp_path tmp;
    proxy_temp_path tmp;
    fastcgi_temp_path tmp;
    uwsgi_temp_path tmp;
    scgi_temp_path tmp;
    server {
        listen 80 backlog=4096;
        listen [::]:80 ipv6only=on backlog=4096;
        listen 8080 backlog=4096;
        listen [::]:8080 ipv6only=on backlog=4096;
        default_type text/plain;
        location = / { return 200 "NAME $arg_n\n"; }
        location = /who { return 200 "$remote_addr\n"; }
        location = /healthz { return 200 "ok\n"; }
        location /files/ { alias FILES/; }
    }
}
"#;

/// `iperf3 -s` in the namespace of a server, port 5201: one for each family, as each runs one test
/// at a time.
pub fn iperf_server(bed_dir: &Path, netns: &Netns) -> Result<[Running; 2]> {
    let start = |family: &str, table: &'static str| -> Result<Running> {
        let log = bed_dir.join(format!("{}-iperf3{family}.log", netns.name));
        let running = Running::start("iperf3", &log, netns.command("iperf3").args(["-s", family]))?;
        wait_for("iperf3 listens", Duration::from_secs(5), || {
            let read = move || fs::read_to_string(format!("/proc/thread-self/net/{table}"));
            let listed = netns.run(read)?.context("can't read /proc")?;
            // 5201 in hexadecimal, in state LISTEN.
            Ok(listed.lines().any(|line| line.contains(":1451 ") && line.contains(" 0A ")))
        })?;
        Ok(running)
    };
    Ok([start("-4", "tcp")?, start("-6", "tcp6")?])
}

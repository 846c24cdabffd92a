//! What is not for a service is left alone; what is for another port of a VIP is answered.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};
use weir_tests::{
    bed::{Bed, Layout, VIPS, balancer_v4, balancer_v6},
    netns::Netns,
};

use crate::scene::Scene;

#[test]
fn traffic_to_the_nodes_own_address_on_the_same_interface_is_untouched() -> Result<()> {
    for layout in [Layout::Routed, Layout::SharedL2] {
        let scene = Scene::new(layout, 1, 1)?;
        echo_server(&scene.bed.lb, 22)?;
        let own: [IpAddr; 2] = match layout {
            Layout::Routed => ["10.1.0.1".parse()?, "fd01::1".parse()?],
            Layout::SharedL2 => ["10.2.0.5".parse()?, "fd02::5".parse()?],
            Layout::Tunnelled => [balancer_v4(1), balancer_v6(1)],
        };
        for address in own {
            converse(&scene.bed, SocketAddr::new(address, 22)).with_context(|| format!("{layout:?} {address}"))?;
        }
    }
    Ok(())
}

#[test]
fn other_ports_of_a_vip_are_reset_at_once_and_reach_nobody() -> Result<()> {
    for layout in [Layout::Routed, Layout::SharedL2] {
        let scene = Scene::new(layout, 1, 1)?;
        echo_server(&scene.bed.lb, 22)?;
        for vip in VIPS {
            let refused =
                scene.bed.client.run(move || TcpStream::connect_timeout(&(vip, 22).into(), Duration::from_secs(2)))?;
            let kind = refused.map(drop).map_err(|error| error.kind());
            assert_eq!(kind, Err(std::io::ErrorKind::ConnectionRefused), "{layout:?} {vip}");
        }
    }
    Ok(())
}

#[test]
fn client_reaches_servers_directly_through_the_node_while_weir_runs() -> Result<()> {
    let scene = Scene::new(Layout::Routed, 2, 2)?;
    for vip in VIPS {
        for number in 1..=2 {
            let url = weir_tests::tools::url(scene.bed.backend(number, vip), "/?n=3");
            assert_eq!(weir_tests::tools::curl(&scene.bed.client, &url)?, format!("s{number} 3\n"));
        }
    }
    Ok(())
}

/// A server that gives back what it gets, on a thread that ends with the process.
fn echo_server(netns: &Netns, port: u16) -> Result<()> {
    let listener = netns.run(move || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))?;
    let listener = listener.with_context(|| format!("can't listen on port {port}"))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
    Ok(())
}

/// Like a person at a shell: small messages there and back, and a large one.
fn converse(bed: &Bed, to: SocketAddr) -> Result<()> {
    bed.client.run(move || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let large: Vec<u8> = (0..200_000_u32).map(|byte| (byte % 251) as u8).collect();
        for message in [b"ls\n".as_slice(), b"exit\n", &large] {
            let mut writer = stream.try_clone()?;
            let copy = message.to_vec();
            let writing = std::thread::spawn(move || writer.write_all(&copy));
            let mut back = vec![0; message.len()];
            stream.read_exact(&mut back)?;
            assert!(back == message, "what came back is not what was sent");
            writing.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        }
        Ok(())
    })?
}

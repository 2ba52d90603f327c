//! Tests how many allocations the server makes for one provisioning.

use super::*;

/// Maximum number of allocations of one provisioning. `docs/performance.md` gives the current
/// number.
const MOST_ALLOCATIONS: u64 = 55;

/// Returns the allocations that the server makes in one conversation: their number in each
/// step, and their bytes in total.
fn allocations(stack: &mut Stack, profile: Profile) -> (Vec<u64>, u64) {
    let (now, peer) = (Instant::now(), SocketAddr::from(([10, 0, 0, 1], 5684)));
    let mut client = Client::new(profile, rand::random());
    let (mut steps, mut bytes) = (Vec::new(), 0);
    let mut out = Collected(Vec::with_capacity(16));
    let mut to_server = client.start(now);
    let mut asked = false;
    while let Some(mut datagram) = to_server.pop() {
        let mut measured = allocation_counter::measure(|| stack.receive(now, peer, &mut datagram, &mut out));
        // For each collected datagram, the test itself makes one allocation.
        measured.count_total -= out.0.len() as u64;
        steps.push(measured.count_total);
        bytes += measured.bytes_total;
        for (_, answer) in out.0.drain(..) {
            to_server.extend(client.receive(now, &answer));
        }
        if client.is_established() && !asked {
            asked = true;
            to_server.push(client.send(&request(9, b"sn=SN-1")));
        } else if !client.received.is_empty() {
            assert_eq!(client.received.remove(0)[1], 0x45);
            to_server.push(client.close());
        }
    }
    assert!(asked);
    (steps, bytes)
}

#[test]
fn a_provisioning_makes_no_more_allocations_than_documented() {
    let folder = tempfile::TempDir::new().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let services = services(&folder, runtime.handle(), RequestLimits::default());
    let device = DeviceId::parse("SN-1").unwrap();
    let certificate = crate::device::Certificate {
        product_key: "a1".into(),
        device_name: "SN-1".into(),
        device_secret: crate::device::Secret::new("secret".into()),
    };
    let registration = crate::store::RegisteredDevice { certificate, iot_id: None, registered: 1 };
    runtime.block_on(crate::testing::store::register(&*services.store, &device, registration)).unwrap();
    runtime.block_on(crate::testing::store::issue(&*services.store, &device)).unwrap();
    let now = Instant::now();
    let dtls = dtls::Endpoint::new(dtls::Config::default(), now, &[1; 32], [2; 32]);
    let coap = coap::Endpoint::new(coap::Config::default(), now, [3; 32]);
    let mut stack = Stack::new(dtls, coap, services);
    let psk = Psk::new(hex::decode(KEY).unwrap()).unwrap();
    let profile = Profile::new("plug", psk);
    // The first conversations make tables grow and prepare statements, so they are not measured.
    for _ in 0..100 {
        allocations(&mut stack, profile.clone());
    }
    let (steps, bytes) = allocations(&mut stack, profile);
    println!(
        "allocations: hello, hello with cookie, key and Finished, request, close: {steps:?}; {bytes} bytes"
    );
    assert_eq!(steps[0], 0, "nothing for an unknown client");
    assert!(steps.iter().sum::<u64>() <= MOST_ALLOCATIONS, "{steps:?}");
}

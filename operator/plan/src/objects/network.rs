//! Who may talk to whom: the peers that the plan lists, and nothing else.

use super::binder::port_number;
use super::workload::client_label;
use super::{ADMIN_PORT_NUMBER, Context, HTTP_PORT_NUMBER, Object, component_selector, pod};
use crate::{ADMIN_PORT, ComponentKind, PlanError, Role};
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::{BTreeMap, BTreeSet};

/// The policy of the component's pods.
pub(crate) fn policy(context: &Context<'_>) -> Result<Option<Object>, PlanError> {
    if !context.surroundings.network.enabled {
        return Ok(None);
    }
    let component = context.component;
    let spec = NetworkPolicySpec {
        pod_selector: Some(selector(component_selector(component))),
        policy_types: Some(vec!["Ingress".into(), "Egress".into()]),
        ingress: Some(ingress(context)?),
        egress: Some(egress(context)?),
    };
    let metadata = context.metadata(component.name.clone(), context.labels(), context.owners.to_vec());
    Ok(Some(Object::NetworkPolicy(Box::new(NetworkPolicy { metadata, spec: Some(spec) }))))
}

fn ingress(context: &Context<'_>) -> Result<Vec<NetworkPolicyIngressRule>, PlanError> {
    let (component, network) = (context.component, &context.surroundings.network);
    let mut rules = vec![NetworkPolicyIngressRule {
        from: Some(vec![namespace(network.scraper_namespaces.clone())]),
        ports: Some(vec![tcp(if component.ports.contains(ADMIN_PORT) { ADMIN_PORT_NUMBER } else { HTTP_PORT_NUMBER })]),
    }];
    let served: Vec<_> = component.ports.iter().filter(|port| *port != ADMIN_PORT).collect();
    if !served.is_empty() {
        let ports = served.into_iter().map(|port| port_number(port).map(tcp)).collect::<Result<Vec<_>, _>>()?;
        // Callers carry a label, so that a server's policy stays the same while its users come and go.
        // A served searcher is for whoever runs in the namespace.
        let callers = match component.kind {
            ComponentKind::Searcher => BTreeMap::new(),
            _ => client_label(&component.name),
        };
        rules.push(NetworkPolicyIngressRule { from: Some(vec![pods(callers)]), ports: Some(ports) });
    }
    if replicated_job(context) {
        rules.push(NetworkPolicyIngressRule { from: Some(vec![pods(component_selector(component))]), ports: None });
    }
    Ok(rules)
}

fn egress(context: &Context<'_>) -> Result<Vec<NetworkPolicyEgressRule>, PlanError> {
    let (component, network) = (context.component, &context.surroundings.network);
    let dns = if network.dns_ranges.is_empty() { None } else { Some(ranges(&network.dns_ranges)) };
    let mut rules = vec![NetworkPolicyEgressRule { to: dns, ports: Some(vec![port("UDP", 53), port("TCP", 53)]) }];
    for need in pod::services(context) {
        let Some(need) = context.plan.component(need) else { continue };
        let served = need.ports.iter().filter(|port| *port != ADMIN_PORT);
        let ports = served.map(|port| port_number(port).map(tcp)).collect::<Result<Vec<_>, _>>()?;
        rules.push(NetworkPolicyEgressRule { to: Some(vec![pods(component_selector(need))]), ports: Some(ports) });
    }
    if let (true, Some(address)) = (pod::reports(context), &context.surroundings.operator_address) {
        let mut peer = namespace(network.operator_namespace.clone());
        peer.pod_selector = Some(selector(network.operator_pods.clone()));
        let ports = url_port(address).map(|number| vec![tcp(number)]);
        rules.push(NetworkPolicyEgressRule { to: Some(vec![peer]), ports });
    }
    if replicated_job(context) {
        let to = Some(vec![pods(component_selector(component))]);
        rules.push(NetworkPolicyEgressRule { to, ports: None });
    }
    if !network.storage_ranges.is_empty() {
        rules.push(NetworkPolicyEgressRule { to: Some(ranges(&network.storage_ranges)), ports: None });
    }
    // Generators, web searches and rollout engines may be anywhere; only who asks them reaches them, on their ports.
    if !component.endpoints.is_empty() {
        let ports: BTreeSet<u16> = component.endpoints.iter().filter_map(|endpoint| url_port(&endpoint.url)).collect();
        let ports = ports.into_iter().map(tcp).collect();
        rules.push(NetworkPolicyEgressRule { to: None, ports: Some(ports) });
    }
    // A server that fetches its model itself.
    if component.kind == ComponentKind::ModelServer && component.config.value["hub"] == true {
        rules.push(NetworkPolicyEgressRule { to: None, ports: Some(vec![tcp(443)]) });
    }
    if matches!(component.kind, ComponentKind::Fetch | ComponentKind::GatewayFetch) {
        rules.push(NetworkPolicyEgressRule { to: None, ports: Some(vec![tcp(443), tcp(80)]) });
    }
    Ok(rules)
}

fn replicated_job(context: &Context<'_>) -> bool {
    context.component.role == Role::Job && context.attempt.replicas > 1
}

fn selector(labels: BTreeMap<String, String>) -> LabelSelector {
    LabelSelector { match_labels: (!labels.is_empty()).then_some(labels), match_expressions: None }
}

/// Pods of the same namespace.
fn pods(labels: BTreeMap<String, String>) -> NetworkPolicyPeer {
    NetworkPolicyPeer { pod_selector: Some(selector(labels)), ..NetworkPolicyPeer::default() }
}

/// All pods of the namespaces with these labels.
fn namespace(labels: BTreeMap<String, String>) -> NetworkPolicyPeer {
    NetworkPolicyPeer { namespace_selector: Some(selector(labels)), ..NetworkPolicyPeer::default() }
}

fn ranges(ranges: &[String]) -> Vec<NetworkPolicyPeer> {
    let block = |cidr: &String| IPBlock { cidr: cidr.clone(), except: None };
    ranges
        .iter()
        .map(|cidr| NetworkPolicyPeer { ip_block: Some(block(cidr)), ..NetworkPolicyPeer::default() })
        .collect()
}

fn tcp(number: u16) -> NetworkPolicyPort {
    port("TCP", number)
}

fn port(protocol: &str, number: u16) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: Some(protocol.into()),
        port: Some(IntOrString::Int(i32::from(number))),
        end_port: None,
    }
}

/// The port of a URL, by its scheme where it names none.
fn url_port(url: &str) -> Option<u16> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let by_scheme = if scheme == "https" { 443 } else { 80 };
    // An address in brackets holds colons of its own.
    let after = host.rsplit_once(']').map_or(host, |(_, after)| after);
    match after.rsplit_once(':') {
        Some((_, number)) => number.parse().ok(),
        None => Some(by_scheme),
    }
}

#[cfg(test)]
mod tests {
    use super::url_port;

    #[test]
    fn ports_of_urls() {
        for (url, port) in [
            ("https://api.example.org/v1", Some(443)),
            ("http://vllm.models.svc:8000/v1", Some(8000)),
            ("http://user@host/v1", Some(80)),
            ("http://[::1]:9000", Some(9000)),
            ("http://[::1]/v1", Some(80)),
            ("host:80", None),
        ] {
            assert_eq!(url_port(url), port, "{url}");
        }
    }
}

package sysfile

// rcFiles are files such as hosts have.
var rcFiles = map[string]string{
	"empty": "",
	"fresh 14": `hostname="proxy1.example.org"
ifconfig_em0="DHCP"
ifconfig_em0_ipv6="inet6 accept_rtadv"
sshd_enable="YES"
ntpd_enable="YES"
ntpd_sync_on_start="YES"
# Set dumpdev to "AUTO" to enable crash dumps, "NO" to disable
dumpdev="AUTO"
zfs_enable="YES"
`,
	"bsdinstall 13 on UFS": `clear_tmp_enable="YES"
syslogd_flags="-ss"
sendmail_enable="NONE"
hostname="proxy1"
keymap="de.kbd"
ifconfig_igb0="inet 198.51.100.11 netmask 255.255.255.0"
defaultrouter="198.51.100.1"
ifconfig_igb0_ipv6="inet6 2001:db8::11 prefixlen 64"
ipv6_defaultrouter="2001:db8::1"
local_unbound_enable="YES"
sshd_enable="YES"
moused_enable="YES"
powerd_enable="YES"
# Set dumpdev to "AUTO" to enable crash dumps, "NO" to disable
dumpdev="NO"`,
	"jail host": `hostname="jails.example.org"
cloned_interfaces="lo1 lo2 bridge0 \
	vlan10 vlan20 \
	epair0 epair1 epair2"
ifconfig_bridge0="addm em0 addm epair0a addm epair1a up"
ifconfig_vlan10="vlan 10 vlandev em0 inet 192.0.2.1/24"
ifconfig_vlan20="vlan 20 vlandev em0"
ifconfig_lo1_aliases="inet 127.0.1.1-9/32"
ifconfig_em0_alias0="inet vhid 1 advskew 100 pass Carp1 alias 198.51.100.10/32"
ifconfig_em0_alias1="inet vhid 1 advskew 100 pass Carp1 alias 198.51.100.12/32"
ifconfig_em0_alias3="inet6 vhid 2 advskew 100 pass Carp2 alias 2001:db8::10/128"
jail_enable="YES"
jail_list="www db cache"
jail_parallel_start=YES
kld_list="if_bridge if_epair carp"
gateway_enable=YES; ipv6_gateway_enable=YES
pf_enable='YES'	# see /etc/pf.conf
export PATH_EXTRA=/opt/bin
`,
	"sections": `##############################################################
###  Network                                               ###
##############################################################

hostname=proxy2            # no quotes
    ifconfig_em0='inet 198.51.100.12/24'   # indented

#certsync_enable="NO"
# haproxy_enable="YES"	once it works

##  Services
haproxy_enable="NO"
haproxy_enable="YES"   # twice: this one counts
sshd_enable="YES"
`,
	"computed": `hostname="$(/bin/kenv -q smbios.system.serial || echo unknown).example.org"
kld_list="if_vlan"
kld_list="${kld_list} carp"
if [ -r /etc/rc.conf.site ]; then
	. /etc/rc.conf.site
fi
case "${hostname}" in
proxy1*)	advskew=0 ;;
*)		advskew=100 ;;
esac
sshd_enable="YES"
`,
}

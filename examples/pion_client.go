// A device on pion (2.2): PSK-DTLS 1.2, one CoAP request, its answer.
//
//	GO111MODULE=off GOPATH=/usr/share/gocode go build -o pion_client pion_client.go
//	./pion_client 127.0.0.1 5684 plug-batch-7 706c75672d62617463682d372d6b6579 PLUG0001 \
//	    TLS_PSK_WITH_AES_128_CCM_8
//
// It prints the answer's code and payload. A last argument sets options: `noems` leaves
// extended master secret out, `rfc7925` sets the 9 s of RFC 7925 section 11 for the
// handshake's timer.
package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/pion/dtls/v2"
)

// RFC 7252 section 4.8. exchangeLifetime is the maximum wait for a separate response.
const (
	ackTimeout       = 2 * time.Second
	maxRetransmit    = 4
	exchangeLifetime = 247 * time.Second
)

// Time that the session stays open after a separate response. If our acknowledgement is
// lost, the response is repeated within 3 s.
const linger = 3 * time.Second

// Maximum number of requests, each with a new message ID, while none is acknowledged.
const attempts = 3

const patience = 300 * time.Second

var suites = map[string]dtls.CipherSuiteID{
	"TLS_PSK_WITH_AES_128_CCM_8":      dtls.TLS_PSK_WITH_AES_128_CCM_8,
	"TLS_PSK_WITH_AES_128_CCM":        dtls.TLS_PSK_WITH_AES_128_CCM,
	"TLS_PSK_WITH_AES_128_GCM_SHA256": dtls.TLS_PSK_WITH_AES_128_GCM_SHA256,
}

// GET /cert with {"sn": sn} as CBOR: a confirmable message of token 0xc3. The serial
// number has up to 23 characters.
func request(sn string) []byte {
	head := "\x41\x01\x12\x34\xc3\xb4cert\x11\x3c\xff\xa1\x62sn"
	return append(append([]byte(head), 0x60|byte(len(sn))), sn...)
}

// exchange returns the response to a request, piggybacked or separate (RFC 7252).
func exchange(conn net.Conn, request []byte) ([]byte, error) {
	var response []byte
	acknowledged, sent := false, 0
	wait := ackTimeout + time.Duration(rand.Int63n(int64(ackTimeout/2)))
	until := time.Now()
	buffer := make([]byte, 2048)
	for {
		if !time.Now().Before(until) {
			if response != nil {
				return response, nil
			}
			// Section 4.2: the request is repeated until it is acknowledged.
			if acknowledged || sent > maxRetransmit {
				return nil, errors.New("no answer")
			}
			if _, err := conn.Write(request); err != nil {
				return nil, err
			}
			sent++
			until = time.Now().Add(wait)
			wait *= 2
		}
		if err := conn.SetReadDeadline(until); err != nil {
			return nil, err
		}
		length, err := conn.Read(buffer)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			continue
		}
		if err != nil && response != nil {
			return response, nil
		}
		if err != nil {
			return nil, err
		}
		message := buffer[:length]
		if length < 4 || message[0]>>6 != 1 {
			continue
		}
		kind, confirmable := message[0]>>4&3, message[0]>>4&3 == 0
		ours := message[2] == request[2] && message[3] == request[3]
		if kind == 3 {
			if ours && response == nil {
				return nil, errors.New("the request was rejected")
			}
			continue
		}
		if kind == 2 && message[1] == 0 {
			// Section 5.2.2: the response follows separately.
			if ours && !acknowledged && response == nil {
				acknowledged = true
				until = time.Now().Add(exchangeLifetime)
			}
			continue
		}
		matches := message[1] >= 0x40 && message[0]&15 == 1 && length > 4 && message[4] == request[4]
		if confirmable {
			// Section 4.2: each copy of the response is acknowledged. Any other confirmable message,
			// such as an empty one (a ping), is rejected.
			reply := []byte{0x70, 0, message[2], message[3]}
			if matches {
				reply[0] = 0x60
			}
			if _, err := conn.Write(reply); err != nil {
				return nil, err
			}
		}
		if matches && response == nil {
			response = append([]byte{}, message...)
			until = time.Now()
			if confirmable {
				until = until.Add(linger)
			}
		}
	}
}

// payload returns the payload. The options are skipped one by one, because they may contain
// the payload marker 0xff.
func payload(message []byte) []byte {
	at := 4 + int(message[0]&15)
	for at < len(message) && message[at] != 0xff {
		delta, size := message[at]>>4, int(message[at]&15)
		at++
		if delta == 13 {
			at++
		} else if delta == 14 {
			at += 2
		}
		if size == 13 && at < len(message) {
			size = 13 + int(message[at])
			at++
		}
		at += size
	}
	if at >= len(message) {
		return nil
	}
	return message[at+1:]
}

func run(arguments []string) error {
	options := ""
	if len(arguments) > 6 {
		options = arguments[6]
	}
	port, err := strconv.Atoi(arguments[1])
	if err != nil {
		return err
	}
	key, err := hex.DecodeString(arguments[3])
	if err != nil {
		return err
	}
	suite, known := suites[arguments[5]]
	if !known || len(arguments[4]) > 23 {
		return errors.New("no such suite, or too long a serial number")
	}
	config := &dtls.Config{
		PSK:             func([]byte) ([]byte, error) { return key, nil },
		PSKIdentityHint: []byte(arguments[2]),
		CipherSuites:    []dtls.CipherSuiteID{suite},
	}
	if strings.Contains(options, "noems") {
		config.ExtendedMasterSecret = dtls.DisableExtendedMasterSecret
	}
	if strings.Contains(options, "rfc7925") {
		config.FlightInterval = 9 * time.Second
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := dtls.DialWithContext(ctx, "udp", &net.UDPAddr{IP: net.ParseIP(arguments[0]), Port: port}, config)
	if err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	defer conn.Close()
	var response []byte
	message := request(arguments[4])
	for attempt := 0; attempt < attempts && response == nil; attempt++ {
		response, err = exchange(conn, message)
		message[3]++
	}
	if err != nil {
		return err
	}
	fmt.Printf("%s %d.%02d %s\n", arguments[5], response[1]>>5, response[1]&31, payload(response))
	if response[1]>>5 != 2 {
		return errors.New("refused")
	}
	return nil
}

func main() {
	rand.Seed(time.Now().UnixNano())
	if len(os.Args) < 7 {
		fmt.Fprintf(os.Stderr, "usage: %s HOST PORT IDENTITY PSK-HEX SN SUITE [OPTIONS]\n", os.Args[0])
		os.Exit(2)
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

#!/usr/bin/env escript
%%! -noshell
%% A device on Erlang/OTP's ssl (25): PSK-DTLS 1.2 with or without ECDHE, one CoAP request,
%% its answer.
%%
%%   escript erlang_client.escript 127.0.0.1 5684 plug-batch-7 \
%%       706c75672d62617463682d372d6b6579 PLUG0001 PSK-AES128-CCM8
%%
%% It prints the answer's code and payload. The suite is given by OpenSSL's name. Two suites
%% that OpenSSL lacks are called ECDHE-PSK-AES128-CCM8 and ECDHE-PSK-AES128-GCM-SHA256. A
%% last argument sets options: a group (`x25519` or `p256`).

%% RFC 7252 section 4.8, in milliseconds. EXCHANGE_LIFETIME is the maximum wait for a
%% separate response.
-define(ACK_TIMEOUT, 2000).
-define(MAX_RETRANSMIT, 4).
%% Maximum number of requests, each with a new message ID, while none is acknowledged.
-define(ATTEMPTS, 3).
-define(EXCHANGE_LIFETIME, 247000).
%% Time that the session stays open after a separate response. If our acknowledgement is
%% lost, the response is repeated within 3 s.
-define(LINGER, 3000).
-define(PATIENCE, 300000).
-define(FIRST_ID, 16#1234).
-define(TOKEN, 16#c3).

-record(exchange, {socket, id, request, sent = 0, wait, until, acknowledged = false, response = none}).

main([Host, Port, Identity, Key, Sn, Suite | Rest]) when length(Sn) < 24 ->
    Options = lists:append(Rest),
    {ok, _} = application:ensure_all_started(ssl),
    %% Log lines would mix with the answer on standard output.
    logger:set_primary_config(level, none),
    {ok, Address} = inet:parse_address(Host),
    Psk = binary:decode_hex(list_to_binary(Key)),
    Connection =
        [{protocol, dtls}, {versions, ['dtlsv1.2']}, {ciphers, [suite(Suite)]}, {verify, verify_none},
         {psk_identity, Identity}, {user_lookup_fun, {fun(psk, _, State) -> {ok, State} end, Psk}},
         {active, false}, {mode, binary}] ++ groups(Options),
    case ssl:connect(Address, list_to_integer(Port), Connection, ?PATIENCE) of
        {ok, Socket} ->
            Result = ask(Socket, Sn, Suite),
            ssl:close(Socket),
            halt(Result);
        {error, Reason} ->
            io:format(standard_error, "handshake: ~p~n", [Reason]),
            halt(1)
    end;
main(_) ->
    io:format(standard_error, "usage: erlang_client.escript HOST PORT IDENTITY PSK-HEX SN SUITE [OPTIONS]~n", []),
    halt(2).

suite("ECDHE-PSK-AES128-CCM8") -> #{key_exchange => ecdhe_psk, cipher => aes_128_ccm_8, mac => aead, prf => sha256};
suite("ECDHE-PSK-AES128-GCM-SHA256") -> #{key_exchange => ecdhe_psk, cipher => aes_128_gcm, mac => aead, prf => sha256};
suite("PSK-AES128-CCM8") -> #{key_exchange => psk, cipher => aes_128_ccm_8, mac => aead, prf => default_prf};
suite("PSK-AES128-CCM") -> #{key_exchange => psk, cipher => aes_128_ccm, mac => aead, prf => default_prf};
suite("PSK-AES128-GCM-SHA256") -> #{key_exchange => psk, cipher => aes_128_gcm, mac => aead, prf => sha256}.

groups("") -> [];
groups("x25519") -> [{eccs, [x25519]}];
groups("p256") -> [{eccs, [secp256r1]}].

ask(Socket, Sn, Suite) ->
    case ask(Socket, list_to_binary(Sn), ?FIRST_ID, ?ATTEMPTS) of
        {Code, Rest} ->
            Answer = [io_lib:format("~s ~b.~2..0b ", [Suite, Code bsr 5, Code band 31]), payload(Rest), "\n"],
            ok = io:setopts([{encoding, latin1}]),
            ok = io:put_chars(binary_to_list(iolist_to_binary(Answer))),
            case Code bsr 5 of 2 -> 0; _ -> 1 end;
        none ->
            io:format(standard_error, "no answer~n", []),
            1
    end.

ask(_, _, _, 0) -> none;
ask(Socket, Name, Id, Attempts) ->
    %% GET /cert with {"sn": sn} as CBOR: a confirmable message.
    Request = <<1:2, 0:2, 1:4, 1, Id:16, ?TOKEN, 16#b4, "cert", 16#11, 60, 16#ff, 16#a1, 16#62, "sn",
                (16#60 bor byte_size(Name)), Name/binary>>,
    Wait = ?ACK_TIMEOUT + rand:uniform(?ACK_TIMEOUT div 2),
    case exchange(#exchange{socket = Socket, id = Id, request = Request, wait = Wait, until = now_millis()}) of
        none -> ask(Socket, Name, Id + 1, Attempts - 1);
        Response -> Response
    end.

now_millis() -> erlang:monotonic_time(millisecond).

%% Returns the response to the request, piggybacked or separate: its code and the bytes
%% after its token.
exchange(#exchange{until = Until, sent = Sent} = E) ->
    case now_millis() >= Until of
        true when E#exchange.response =/= none; E#exchange.acknowledged; Sent > ?MAX_RETRANSMIT ->
            E#exchange.response;
        true ->
            %% Section 4.2: the request is repeated until it is acknowledged.
            ok = ssl:send(E#exchange.socket, E#exchange.request),
            Wait = E#exchange.wait,
            exchange(E#exchange{sent = Sent + 1, until = now_millis() + Wait, wait = 2 * Wait});
        false ->
            case ssl:recv(E#exchange.socket, 0, Until - now_millis()) of
                {ok, Message} -> exchange(received(Message, E));
                {error, timeout} -> exchange(E);
                {error, _} -> E#exchange.response
            end
    end.

%% Section 5.2.2: after an empty acknowledgement the response follows separately.
received(<<1:2, 2:2, _:4, 0, Id:16, _/binary>>, #exchange{id = Id, acknowledged = false, response = none} = E) ->
    E#exchange{acknowledged = true, until = now_millis() + ?EXCHANGE_LIFETIME};
received(<<1:2, 3:2, _:4, 0, Id:16, _/binary>>, #exchange{id = Id} = E) ->
    E#exchange{acknowledged = true, until = now_millis()};
received(<<1:2, Type:2, 1:4, Code, Id:16, ?TOKEN, Rest/binary>>, E) when Code >= 16#40 ->
    %% Section 4.2: each copy of a confirmable response is acknowledged.
    Linger =
        case Type of
            0 -> ok = ssl:send(E#exchange.socket, <<1:2, 2:2, 0:4, 0, Id:16>>), ?LINGER;
            _ -> 0
        end,
    case E#exchange.response of
        none -> E#exchange{response = {Code, Rest}, until = now_millis() + Linger};
        _ -> E
    end;
received(<<1:2, 0:2, _:4, _, Id:16, _/binary>>, E) ->
    %% Section 4.2: any other confirmable message, such as an empty one (a ping), is rejected.
    ok = ssl:send(E#exchange.socket, <<1:2, 3:2, 0:4, 0, Id:16>>),
    E;
received(_, E) ->
    E.

%% Returns the payload. The options are skipped one by one, because they may contain the
%% payload marker 16#ff.
payload(<<16#ff, Payload/binary>>) -> Payload;
payload(<<Delta:4, 13:4, Rest/binary>>) ->
    <<Size, More/binary>> = extended(Delta, Rest),
    payload(binary:part(More, 13 + Size, byte_size(More) - 13 - Size));
payload(<<Delta:4, Size:4, Rest/binary>>) ->
    More = extended(Delta, Rest),
    payload(binary:part(More, Size, byte_size(More) - Size));
payload(<<>>) -> <<>>.

extended(13, <<_, Rest/binary>>) -> Rest;
extended(14, <<_:16, Rest/binary>>) -> Rest;
extended(_, Rest) -> Rest.
